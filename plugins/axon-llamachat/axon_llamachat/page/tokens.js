const place = element.querySelector(".axon-tokens");
const text = make("div", "axon-text");
const tip = make("div", "axon-tip");
tip.setAttribute("role", "tooltip");
tip.hidden = true;
place.append(text, tip);
let drawn = [];

const tell = (span, node) => {
  tip.replaceChildren();
  for (const { own, top } of span.scores) {
    const table = make("table");
    const rows = top.some(([name]) => name === own[0]) ? top : [...top, own];
    for (const [name, percent] of rows) {
      const row = make("tr", name === own[0] ? "own" : "");
      row.append(make("td", "", JSON.stringify(name).slice(1, -1).replaceAll(" ", "␣")), make("td", "", percent));
      table.append(row);
    }
    tip.append(table);
  }
  tip.hidden = false;
  const box = place.getBoundingClientRect(), at = node.getClientRects()[0];
  tip.style.left = `${Math.max(0, Math.min(at.left - box.left, box.width - tip.offsetWidth))}px`;
  tip.style.top = `${at.bottom - box.top + 4}px`;
};
const hide = () => (tip.hidden = true);

const draw = () => {
  const { prompt = "", spans = [], busy = false } = props.value ?? {};
  place.classList.toggle("busy", busy);
  const all = [{ text: prompt, scores: [] }, ...spans];
  while (drawn.length > all.length) drawn.pop().node.remove();
  all.forEach((span, index) => {
    const key = JSON.stringify(span);
    if (drawn[index]?.key === key) return;
    const node = make("span", span.scores.length ? "axon-token" : "axon-given", span.text);
    if (span.scores.length) {
      const p = Math.min(...span.scores.map((score) => score.p));
      node.style.setProperty("--doubt", (1 - p).toFixed(3));
      node.addEventListener("mouseenter", () => tell(span, node));
      node.addEventListener("mouseleave", hide);
    }
    if (drawn[index]) drawn[index].node.replaceWith(node);
    else text.append(node);
    drawn[index] = { key, node };
  });
};
show(draw);

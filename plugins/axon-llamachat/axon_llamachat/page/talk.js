const place = element.querySelector(".axon-talk");
place.setAttribute("role", "log");
place.setAttribute("aria-label", "Conversation");
let drawn = []; // {key, node} of each turn

const act = (turn, index, last, busy) => {
  const actions = make("div", "axon-actions");
  actions.append(button("Copy", "Copy this message", () => navigator.clipboard?.writeText(turn.content)));
  if (busy) return actions;
  if (turn.role === "user") actions.append(button("Edit", "Edit this message", () => edit(turn, index)));
  if (last) actions.append(button("Regenerate", "Write another answer", () => trigger("retry", {})));
  return actions;
};

const edit = (turn, index) => {
  const node = drawn[index].node;
  const box = make("textarea", "axon-edit");
  box.value = turn.content;
  box.rows = Math.min(8, turn.content.split("\n").length + 1);
  box.setAttribute("aria-label", "Message");
  const actions = make("div", "axon-actions");
  const send = () => trigger("edit", { index, text: box.value });
  actions.append(button("Send", "Send the changed message", send), button("Cancel", "Leave it", () => draw(true)));
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      send();
    } else if (event.key === "Escape") draw(true);
  });
  node.replaceChildren(box, actions);
  box.focus();
};

const draw = (anew = false) => {
  const { turns = [], busy = false } = props.value ?? {};
  place.classList.toggle("busy", busy);
  place.querySelector(".axon-empty")?.remove();
  if (anew || !turns.length) {
    place.replaceChildren();
    drawn = [];
  }
  while (drawn.length > turns.length) drawn.pop().node.remove();
  turns.forEach((turn, index) => {
    const last = index === turns.length - 1;
    const key = JSON.stringify([turn.role, turn.content, last, busy]);
    if (drawn[index]?.key === key) return;
    const node = make("article", `axon-turn ${turn.role}`);
    node.append(make("div", "axon-text", turn.content), act(turn, index, last, busy));
    if (drawn[index]) drawn[index].node.replaceWith(node);
    else place.append(node);
    drawn[index] = { key, node };
  });
  if (!turns.length) place.append(make("p", "axon-empty", "Write a message to begin."));
};
show(() => draw());

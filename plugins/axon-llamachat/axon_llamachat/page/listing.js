const place = element.querySelector(".axon-listing");

const draw = () => {
  const { open = "", titles = [] } = props.value ?? {};
  const fresh = make("button", "axon-fresh", "+ New conversation");
  fresh.type = "button";
  fresh.addEventListener("click", () => trigger("fresh", {}));
  const list = make("ul");
  for (const [key, title] of titles) {
    const row = make("li", key === open ? "open" : "");
    const name = make("button", "axon-title", title);
    name.type = "button";
    name.title = title;
    if (key === open) name.setAttribute("aria-current", "true");
    name.addEventListener("click", () => trigger("pick", { key }));
    row.append(name, button("×", `Delete “${title}”`, () => trigger("remove", { key })));
    list.append(row);
  }
  place.replaceChildren(fresh, list);
};
show(draw);

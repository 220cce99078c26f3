// What the scripts of this folder share. gradio gives them `element`, `trigger`, `props` and `watch`.
// Texts become `textContent`: nothing that a model or a person writes is ever read as HTML.
const make = (tag, name = "", text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
};
const button = (text, label, act) => {
  const made = make("button", "axon-small", text);
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
};
const show = (draw) => {
  draw();
  watch("value", draw);
};

(talk, system) => {
  const turns = (talk?.turns ?? []).map(({ role, content }) => ({ role, content }));
  if (!turns.length) return;
  const messages = system.trim() ? [{ role: "system", content: system }, ...turns] : turns;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ messages }) + "\n"], { type: "application/json" }));
  link.download = "conversation.jsonl";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

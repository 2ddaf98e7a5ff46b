/* what a page's theme leaves to be said to a screen reader, and to a keyboard */
window.addEventListener("load", () => {
  const each = (chosen, change) => document.querySelectorAll(chosen).forEach(change);
  each("figure.exhibit, .cell_output, .cell_output .output, .cell_output > div, pre, .math", (e) => {
    if (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) e.tabIndex = 0;
  });
  each("summary[aria-label]", (e) => e.removeAttribute("aria-label"));
  each("button[aria-label]", (e) => {
    const text = e.innerText.trim(), name = e.getAttribute("aria-label");
    if (text && !name.includes(text)) e.setAttribute("aria-label", name + ": " + text);
  });
  each(".theme-switch-button", (e) => e.setAttribute("aria-label", "Color mode: Light Dark System Settings"));
  each('[role="list"] > .citation', (e) => e.setAttribute("role", "listitem"));
});

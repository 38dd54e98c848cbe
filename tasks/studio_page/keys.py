"""Keys of the page, each the click of a button that is on view."""

KEYS = {
    "ArrowLeft": ("key-previous", "left arrow: previous frame"),
    "ArrowRight": ("key-next", "right arrow: next frame"),
    "z": ("key-undo", "z: undo"),
    "Enter": ("key-run", "Enter: run"),
    "Escape": ("key-cancel", "Escape: cancel"),
}
"""Key -> the class of its button, and its help."""

IGNORED = "input, textarea, select, [contenteditable=''], [contenteditable='true']"
"""Elements that take keys themselves. A range, as of a slider, takes only the arrows."""

SCRIPT = f"""<script>
const keys = {{{", ".join(f'"{key}": "{name}"' for key, (name, _) in KEYS.items())}}};
document.addEventListener("keydown", (event) => {{
  const name = keys[event.key];
  if (!name || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const at = event.target instanceof Element ? event.target : document.body;
  const field = at.closest("{IGNORED}");
  if (field && (field.type !== "range" || event.key.startsWith("Arrow"))) return;
  const control = at.closest("button, a, summary, [role=tab], [role=button]");
  if (event.key === "Enter" && control && !control.querySelector("img")) return;  // Enter presses that control
  const button = [...document.querySelectorAll("." + name)].find((one) => one.offsetParent !== null && !one.disabled);
  if (!button) return;
  event.preventDefault();
  button.click();
}});
</script>"""
"""For the head of the page."""


def keys_in_words() -> str:
    """The keys as one line of help."""
    return "; ".join(text for _, text in KEYS.values())

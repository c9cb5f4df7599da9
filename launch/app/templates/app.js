// Comfort only: without it every page works the same. It says that the app computes, sends an image as it is dropped,
// and names the files that were chosen.
"use strict";

function sayBusy(form) {
  const note = document.createElement("div");
  note.className = "busy";
  note.setAttribute("role", "status");
  note.append(document.createElement("span"));
  note.firstChild.textContent = form.dataset.busy || "Computing";
  document.body.append(note);
}

for (const form of document.forms) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) event.preventDefault();
    else sayBusy(form);
    form.dataset.sent = "yes";
  });
}

for (const input of document.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => {
    const names = Array.from(input.files, (file) => file.name).join(", ");
    const shown = input.closest(".drop")?.querySelector(".chosen");
    if (shown) shown.textContent = names;
    if (input.hasAttribute("data-submit") && names) input.form.requestSubmit();
  });
}

for (const area of document.querySelectorAll("textarea[data-submit]")) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) area.form.requestSubmit();
  });
}

// A page that the browser shows again from its memory takes a form again.
window.addEventListener("pageshow", () => {
  for (const form of document.forms) delete form.dataset.sent;
  document.querySelector(".busy")?.remove();
});

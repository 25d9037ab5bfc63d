"use strict";

// Tables sort by their headings: numbers by their exact value, not by the rounded text.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      sortRows(table.tBodies[0], column, rising, head.classList.contains("n"));
    });
  });
}

function sortRows(body, column, rising, numeric) {
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = numeric
    ? (a, b) => Number(key(a)) - Number(key(b))
    : (a, b) => key(a).localeCompare(key(b), "en", { numeric: true });
  // Cells without a value stay at the end, whichever way the others go.
  const empty = (row) => numeric && (key(row) === "" || Number.isNaN(Number(key(row))));
  const rows = [...body.rows];
  const known = rows.filter((row) => !empty(row)).sort((a, b) => (rising ? compare(a, b) : compare(b, a)));
  body.append(...known, ...rows.filter(empty));
}

// Pictures step through the layers; all sentences of a picture move together.
for (const picture of document.querySelectorAll(".picture")) {
  const panels = [...picture.querySelectorAll(".panel")].map((element) => ({
    element,
    model: element.dataset.model,
    frames: JSON.parse(element.dataset.frames),
  }));
  const slider = picture.querySelector(".step");
  const back = picture.querySelector(".back");
  const on = picture.querySelector(".on");
  let shown = [];

  const show = () => {
    const at = Number(slider.value);
    shown.forEach((panel) => drawFrame(panel.element, panel.frames[at]));
    back.disabled = at === 0;
    on.disabled = at === Number(slider.max);
    picture.querySelector(".step-name").textContent = `${shown[0].frames[at].name} (${at} of ${slider.max})`;
    slider.setAttribute("aria-valuetext", shown[0].frames[at].name);
  };
  const choose = (model) => {
    shown = panels.filter((panel) => panel.model === model);
    panels.forEach((panel) => { panel.element.hidden = panel.model !== model; });
    picture.querySelectorAll(".common").forEach((said) => { said.hidden = said.dataset.model !== model; });
    picture.querySelectorAll("button.model").forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.model === model));
    });
    slider.max = shown[0].frames.length - 1;
    slider.value = slider.max;
    show();
  };
  const move = (by) => { slider.value = Number(slider.value) + by; show(); };

  slider.addEventListener("input", show);
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  picture.querySelectorAll("button.model").forEach((button) => {
    button.addEventListener("click", () => choose(button.dataset.model));
  });
  if (panels.length) choose(panels.find((panel) => !panel.element.hidden).model);
}

function drawFrame(panel, frame) {
  panel.querySelector("path.gone").setAttribute("d", frame.gone);
  panel.querySelector("path.fresh").setAttribute("d", frame.fresh);
  panel.querySelector(".count").textContent = frame.words;
  panel.querySelector(".which span").textContent = frame.name;
  panel.querySelectorAll(".tokens span").forEach((token, at) => {
    token.classList.toggle("dropped", frame.dropped.includes(at));
    token.classList.toggle("fresh", frame.freshTokens.includes(at));
  });
}

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((details) => { details.open = true; });
});

// The clipboard's own interface asks for a permission that a page opened from a file may lack; a copied selection does not.
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}

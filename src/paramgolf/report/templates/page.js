"use strict";
(() => {
  const {pieces, tokens} = JSON.parse(document.getElementById("data").textContent);
  const passage = document.getElementById("passage"), tip = document.getElementById("tip");
  const spans = [...passage.children];
  const numberOf = new Map(spans.map((span, number) => [span, number]));
  let current = 0, shown = -1;

  const numberAt = (element) => numberOf.get(element.closest(".t")) ?? -1;

  const percent = (share) => share >= 0.9995 && share < 1 ? ">99.9 %"
    : share >= 0.1 ? (100 * share).toFixed(1) + " %"
    : share >= 1e-5 ? Number((100 * share).toPrecision(2)) + " %" : "<0.001 %";
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function fill(number) {
    const [piece, bits, share, rank, best] = tokens[number];
    const [text, kind] = pieces[piece];
    const list = element("ol");
    for (const [other, otherShare] of best) {
      const [otherText, otherKind] = pieces[other];
      const item = element("li", other === piece ? "hit" : "");
      const bar = element("i");
      bar.style.width = (100 * otherShare).toFixed(2) + "%";
      const cell = element("div");
      cell.append(bar);
      bar.style.display = "block";
      item.append(element("span", "is-" + otherKind, otherText), cell, element("b", "", percent(otherShare)));
      list.append(item);
    }
    tip.replaceChildren(
      element("span", "piece is-" + kind, text),
      element("div", "probability", `probability ${percent(share)}, ${bits.toFixed(2)} bits`),
      element("div", "facts", rank === 1 ? "the most likely token" : `rank ${rank.toLocaleString("en")} by probability`),
      list);
  }

  function show(number) {
    if (shown >= 0) hide();
    const span = spans[number];
    fill(number);
    tip.hidden = false;
    span.classList.add("on");
    span.setAttribute("aria-describedby", "tip");
    shown = number;
    place();
  }

  function place() {
    if (shown < 0) return;
    const span = spans[shown];
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), innerWidth - tip.offsetWidth - 8);
    const below = box.bottom + 8 + tip.offsetHeight <= innerHeight;
    const top = below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = top + "px";
  }

  function hide() {
    if (shown < 0) return;
    spans[shown].classList.remove("on");
    spans[shown].removeAttribute("aria-describedby");
    tip.hidden = true;
    shown = -1;
  }

  function choose(number) {
    spans[current].tabIndex = -1;
    current = Math.min(Math.max(0, number), spans.length - 1);
    spans[current].tabIndex = 0;
    spans[current].focus();
  }

  for (const span of spans) span.tabIndex = -1;
  spans[0].tabIndex = 0;
  passage.addEventListener("mouseover", (event) => {
    if (numberAt(event.target) >= 0) show(numberAt(event.target));
  });
  passage.addEventListener("mouseleave", hide);
  passage.addEventListener("focusin", (event) => {
    if (numberAt(event.target) >= 0) show(numberAt(event.target));
  });
  passage.addEventListener("focusout", hide);
  passage.addEventListener("click", (event) => {
    if (numberAt(event.target) >= 0) choose(numberAt(event.target));
  });
  passage.addEventListener("keydown", (event) => {
    const step = {ArrowLeft: -1, ArrowUp: -10, ArrowRight: 1, ArrowDown: 10}[event.key];
    if (step) choose(current + step);
    else if (event.key === "Home") choose(0);
    else if (event.key === "End") choose(spans.length - 1);
    else if (event.key === "Escape") { hide(); return; }
    else return;
    event.preventDefault();
  });
  for (const button of document.querySelectorAll(".commands button")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const selection = getSelection();
      selection.selectAllChildren(button.previousElementSibling);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  addEventListener("scroll", place, {passive: true});
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();

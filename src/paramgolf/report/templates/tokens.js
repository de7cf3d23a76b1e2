"use strict";
// The tokens of a passage: what was predicted of one is shown when it is pointed at, tapped, or
// reached by the arrow keys.
//   passage: the element whose children, each of class "t", are the tokens; more may be added
//   tip: the tooltip
//   describe: returns of token number n {piece: [text, kind], bits, share, rank,
//     best: [[text, kind, share, whether it is the token], ...]}
function explainTokens(passage, tip, describe) {
  const spans = passage.children;
  let current = 0, shown = null;

  const percent = (share) => share >= 0.9995 && share < 1 ? ">99.9 %"
    : share >= 0.1 ? (100 * share).toFixed(1) + " %"
    : share >= 1e-5 ? Number((100 * share).toPrecision(2)) + " %" : "<0.001 %";
  const element = (tag, name, text) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  function fill({piece: [text, kind], bits, share, rank, best}) {
    const list = element("ol");
    for (const [otherText, otherKind, otherShare, hit] of best) {
      const item = element("li", hit ? "hit" : "");
      const bar = element("i");
      bar.style.width = (100 * otherShare).toFixed(2) + "%";
      bar.style.display = "block";
      const cell = element("div");
      cell.append(bar);
      item.append(element("span", "is-" + otherKind, otherText), cell, element("b", "", percent(otherShare)));
      list.append(item);
    }
    tip.replaceChildren(
      element("span", "piece is-" + kind, text),
      element("div", "probability", `probability ${percent(share)}, ${bits.toFixed(2)} bits`),
      element("div", "facts", rank === 1 ? "the most likely token" : `rank ${rank.toLocaleString("en")} by probability`),
      list);
  }

  function show(target) {
    const span = target.closest(".t");
    if (!span) return;
    hide();
    fill(describe([...spans].indexOf(span)));
    tip.hidden = false;
    span.classList.add("on");
    span.setAttribute("aria-describedby", "tip");
    shown = span;
    place();
  }

  function place() {
    if (!shown) return;
    const box = shown.getClientRects()[0] || shown.getBoundingClientRect();
    const left = Math.min(Math.max(8, box.left), innerWidth - tip.offsetWidth - 8);
    const below = box.bottom + 8 + tip.offsetHeight <= innerHeight;
    const top = below ? box.bottom + 8 : Math.max(8, box.top - tip.offsetHeight - 8);
    tip.style.left = Math.max(8, left) + "px";
    tip.style.top = top + "px";
  }

  function hide() {
    if (!shown) return;
    shown.classList.remove("on");
    shown.removeAttribute("aria-describedby");
    tip.hidden = true;
    shown = null;
  }

  function choose(number) {
    if (current < spans.length) spans[current].tabIndex = -1;
    current = Math.min(Math.max(0, number), spans.length - 1);
    spans[current].tabIndex = 0;
    spans[current].focus();
  }

  passage.addEventListener("mouseover", (event) => show(event.target));
  passage.addEventListener("mouseleave", hide);
  passage.addEventListener("focusin", (event) => show(event.target));
  passage.addEventListener("focusout", hide);
  passage.addEventListener("click", (event) => {
    const span = event.target.closest(".t");
    if (span) choose([...spans].indexOf(span));
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
  addEventListener("scroll", place, {passive: true});
  return {
    // Call it when the children of the passage were replaced: the first one takes the focus.
    reset() {
      hide();
      current = 0;
      for (const span of spans) span.tabIndex = span === spans[0] ? 0 : -1;
    },
  };
}

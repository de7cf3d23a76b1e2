(() => {
  const {pieces, tokens} = JSON.parse(document.getElementById("data").textContent);
  const describe = (number) => {
    const [piece, bits, share, rank, best] = tokens[number];
    const others = best.map(([other, otherShare]) => [...pieces[other], otherShare, other === piece]);
    return {piece: pieces[piece], bits, share, rank, best: others};
  };
  explainTokens(document.getElementById("passage"), document.getElementById("tip"), describe).reset();
  for (const button of document.querySelectorAll(".commands button")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const selection = getSelection();
      selection.selectAllChildren(button.previousElementSibling);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();

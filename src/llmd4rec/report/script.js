"use strict";
// Tooltips: the pointer, or the arrow keys once a chart has the focus, show the mark's data-tip.
(() => {
  const tip = document.getElementById("tip");
  const show = (mark) => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const box = mark.getBoundingClientRect();
    const half = tip.offsetWidth / 2;
    const middle = Math.min(Math.max(box.left + box.width / 2, half + 8), document.documentElement.clientWidth - half - 8);
    const above = box.top - tip.offsetHeight - 10;
    tip.style.left = `${middle - half}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 10}px`;
  };
  const hide = () => {
    tip.hidden = true;
    document.querySelectorAll(".marked").forEach((mark) => mark.classList.remove("marked"));
  };
  document.addEventListener("pointerover", (event) => {
    const mark = event.target.closest("[data-tip]");
    if (mark) show(mark);
    else if (!document.querySelector(".marked")) hide();
  });
  document.addEventListener("scroll", hide, { passive: true });
  document.querySelectorAll("[role=group][tabindex]").forEach((chart) => {
    let at = -1;
    chart.addEventListener("keydown", (event) => {
      const marks = [...chart.querySelectorAll("[data-tip]")];
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") return hide();
      if (!step || !marks.length) return;
      event.preventDefault();
      at = (Math.max(at, step > 0 ? -1 : 0) + step + marks.length) % marks.length;
      hide();
      marks[at].classList.add("marked");
      show(marks[at]);
    });
    chart.addEventListener("blur", () => { at = -1; hide(); });
  });
})();

// Hover readouts. Everything they show is in the page without them; text only ever enters through textContent.
(() => {
  "use strict";
  const tip = document.getElementById("tip");
  const SVG = "http://www.w3.org/2000/svg";
  const hide = () => { tip.hidden = true; };
  const show = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    const top = y + 20 + box.height > innerHeight ? y - 14 - box.height : y + 20;
    tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, top)}px)`;
  };

  // The native title would open a second box; it moves aside at the first touch of the pointer.
  for (const area of document.querySelectorAll(".heat, .bars")) {
    area.addEventListener("pointermove", (event) => {
      const mark = event.target.closest(".heat span, .bar");
      if (!mark) return hide();
      const title = mark.querySelector("title");
      if (title) { mark.dataset.tip = title.textContent; title.remove(); }
      if (mark.title) { mark.dataset.tip = mark.title; mark.removeAttribute("title"); }
      if (mark.dataset.tip) show(mark.dataset.tip, event.clientX, event.clientY);
    });
    area.addEventListener("pointerleave", hide);
  }

  const element = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    return parent.appendChild(made);
  };

  for (const svg of document.querySelectorAll("svg.curves")) {
    const lines = [...svg.querySelectorAll("path[data-v]")].map((path) => {
      const at = path.getAttribute("d").match(/-?[\d.]+/g) || [];
      const points = path.dataset.v.split(" ").map((pair, i) => {
        const [x, y] = pair.split(",");
        return { px: +at[2 * i], py: +at[2 * i + 1], x, y };
      });
      return { name: path.dataset.name, paint: path.getAttribute("stroke"), points };
    }).filter((line) => line.points.length);
    if (!lines.length) continue;
    const [, , width] = svg.getAttribute("viewBox").split(" ").map(Number);
    const layer = element("g", { "pointer-events": "none", visibility: "hidden" }, svg);
    const cross = element("line", { class: "cross", y1: svg.dataset.top, y2: svg.dataset.bottom }, layer);
    const spots = lines.map((line) => element("circle", { class: "spot", r: 4, fill: line.paint }, layer));
    svg.querySelectorAll("title").forEach((title) => title.remove());
    const leave = () => { layer.setAttribute("visibility", "hidden"); hide(); };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) * width / box.width;
      const near = lines.map((line) => line.points.reduce((a, b) => Math.abs(b.px - x) < Math.abs(a.px - x) ? b : a));
      const anchor = near.reduce((a, b) => Math.abs(b.px - x) < Math.abs(a.px - x) ? b : a);
      if (Math.abs(anchor.px - x) > 40) return leave();
      cross.setAttribute("x1", anchor.px);
      cross.setAttribute("x2", anchor.px);
      const rows = [`${svg.dataset.x || "x"}: ${anchor.x}`];
      near.forEach((point, i) => {
        const close = Math.abs(point.px - anchor.px) < 6;
        spots[i].setAttribute("visibility", close ? "inherit" : "hidden");
        if (!close) return;
        spots[i].setAttribute("cx", point.px);
        spots[i].setAttribute("cy", point.py);
        rows.push(`${lines[i].name}: ${point.y}${point.x === anchor.x ? "" : " (at " + point.x + ")"}`);
      });
      layer.setAttribute("visibility", "visible");
      show(rows.join("\n"), event.clientX, event.clientY);
    });
  }
})();

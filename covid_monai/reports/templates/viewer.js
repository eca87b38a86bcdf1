// SPDX-License-Identifier: Apache-2.0
// The slice viewer: slider, keys and wheel choose a slice; its picture and overlay are drawn on one canvas.
"use strict";
(() => {
  const { frames, slices, plot } = JSON.parse(document.getElementById("frames").textContent);
  const [viewer, canvas, slider, overlay, position] = ["viewer", "picture", "slider", "overlay", "position"].map((id) =>
    document.getElementById(id)
  );
  const svg = document.getElementById("slice-plot");
  const context = canvas.getContext("2d");
  const cursor = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  for (const [name, value] of [["class", "cursor"], ["stroke", "#0b4f8a"], ["stroke-width", 2], ["fill", "none"]]) {
    cursor.setAttribute(name, value);
  }
  let asked = 0;

  const decoded = async (type, content) => {
    const image = new Image();
    image.src = `data:image/${type};base64,${content}`;
    await image.decode();
    return image;
  };

  const windowChoice = () => document.querySelector("input[name=window]:checked");

  const show = async () => {
    const order = ++asked;
    const frame = frames[slider.value];
    const text = `Slice ${frame.z + 1} of ${slices}: ${frame.text}`;
    const [picture, lesions] = await Promise.all([
      decoded("jpeg", frame[windowChoice().value]),
      overlay.checked ? decoded("png", frame.overlay) : null,
    ]);
    if (order !== asked) return; // another slice was asked for meanwhile
    canvas.width = frame.width;
    canvas.height = frame.height;
    context.drawImage(picture, 0, 0);
    if (lesions) context.drawImage(lesions, 0, 0);
    position.textContent = text;
    canvas.setAttribute("aria-label", text);
    slider.setAttribute("aria-valuetext", `Slice ${frame.z + 1} of ${slices}`);
    const x = plot.left + ((plot.right - plot.left) * (frame.z + 0.5)) / slices;
    cursor.setAttribute("d", `M${x} 6V146`);
  };

  const go = (number) => {
    slider.value = Math.min(Math.max(number, 0), frames.length - 1);
    show();
  };

  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10,
    Home: -Infinity, End: Infinity };
  const keyed = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key in steps) go(Number(slider.value) + steps[event.key]);
    else if (event.key.toLowerCase() === "o") overlay.click();
    else if (event.key.toLowerCase() === "w") {
      document.querySelector("input[name=window]:not(:checked)").click();
    } else return;
    event.preventDefault();
  };

  for (const element of [canvas, slider]) element.addEventListener("keydown", keyed);
  slider.addEventListener("input", show);
  overlay.addEventListener("change", show);
  for (const choice of document.querySelectorAll("input[name=window]")) choice.addEventListener("change", show);
  canvas.addEventListener("click", () => canvas.focus());
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (document.activeElement !== canvas || event.ctrlKey) return; // the page scrolls, or is zoomed
      event.preventDefault();
      go(Number(slider.value) - Math.sign(event.deltaY));
    },
    { passive: false }
  );
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const z = ((x - plot.left) / (plot.right - plot.left)) * slices - 0.5;
    const distances = frames.map((frame) => Math.abs(frame.z - z));
    go(distances.indexOf(Math.min(...distances)));
  });

  viewer.hidden = false;
  const areas = frames.map((frame) => frame.lesion);
  go(areas.indexOf(Math.max(...areas))); // the slice with most lesion
})();

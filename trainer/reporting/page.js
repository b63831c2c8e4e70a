"use strict";

// The epochs of the samples.
for (const figure of document.querySelectorAll("#grids")) {
  const grids = [...figure.querySelectorAll(".grid")];
  const slider = figure.querySelector("#slider");
  const play = figure.querySelector("#play");
  let timer = null;

  const show = () => {
    const epoch = grids[slider.value].dataset.epoch;
    grids.forEach((grid, i) => { grid.hidden = i !== Number(slider.value); });
    figure.querySelector("#epoch").textContent = epoch;
    slider.setAttribute("aria-valuetext", `Epoch ${epoch}`);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶";
    play.setAttribute("aria-label", "Play the epochs");
  };
  const advance = () => {
    slider.value = Number(slider.value) + 1;
    show();
    if (slider.value === slider.max) stop();
  };

  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer !== null) { stop(); return; }
    if (slider.value === slider.max) slider.value = 0;
    show();
    timer = setInterval(advance, Math.min(500, 6000 / grids.length));
    play.textContent = "❚❚";
    play.setAttribute("aria-label", "Stop");
  });
  // Some browsers keep a slider where it was when a page is loaded again.
  show();
}

// The values of the charts where the pointer is.
for (const figure of document.querySelectorAll(".chart")) {
  const data = figure.querySelector("script");
  if (!data) continue;
  const { first, last, series } = JSON.parse(data.textContent);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const outputs = figure.querySelectorAll("output");
  const where = figure.querySelector(".where");

  const nearest = (steps, step) => {
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - steps[low - 1] < steps[low] - step ? low - 1 : low;
  };
  const hover = (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const wanted = first + share * (last - first);
    const all = series.map(({ steps }) => steps[nearest(steps, wanted)]);
    const step = all.reduce((a, b) => (Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
    series.forEach(({ steps, values }, i) => {
      outputs[i].textContent = values[nearest(steps, step)];
    });
    where.textContent = `step ${step.toLocaleString("en")}`;
    cursor.hidden = false;
    cursor.style.left = `${(100 * (step - first)) / (last - first)}%`;
  };
  const leave = () => {
    outputs.forEach((output) => { output.textContent = output.dataset.last; });
    where.textContent = "";
    cursor.hidden = true;
  };
  plot.addEventListener("pointermove", hover);
  plot.addEventListener("pointerdown", hover);
  plot.addEventListener("pointerleave", leave);
}

// Charts with uPlot, in the theme's colours and as wide as their place.

import { number, short } from "./core.js";

const COLORS = 8;

/** The number of a name's colour, the same on every page. */
export function colorOf(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + character.codePointAt(0)) >>> 0;
  return sum % COLORS;
}

/** A colour of the theme as the canvas takes it. */
function color(name) {
  const probe = document.createElement("span");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const faded = (rgb) => rgb.replace("rgb(", "rgba(").replace(")", ", 0.14)");

/**
 * A chart over time. `series` are `{label, color, bars}`, the colour one of the theme's by its name;
 * `stacked` puts them on top of each other. Give `show` the data: epoch seconds, then the values of
 * each series. What it says is for those who do not see it.
 */
export class Chart {
  #place;
  #options;
  #plot = null;
  #data = null;

  constructor(place, options) {
    this.#place = place;
    this.#options = { low: false, stacked: false, format: short, ...options };
    place.setAttribute("role", "img");
    new ResizeObserver(() => this.#resize()).observe(place);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", () => this.#draw());
  }

  show(times, values, says, series = this.#options.series, options = {}) {
    this.#place.setAttribute("aria-label", says);
    const before = JSON.stringify([this.#options.series, this.#options.stacked]);
    Object.assign(this.#options, { series, ...options });
    this.#data = [times, ...(this.#options.stacked ? stacked(values) : values)];
    // A change of what the axis says needs another plot as well: it has no name to compare.
    const isSame = JSON.stringify([series, this.#options.stacked]) === before && !options.format;
    if (this.#plot && isSame) this.#plot.setData(this.#data);
    else this.#draw();
  }

  #resize() {
    const width = this.#place.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) {
      this.#plot.setSize({ width, height: this.#height() });
    }
  }

  #height() {
    return this.#options.low ? 150 : 220;
  }

  #draw() {
    if (!this.#data) return;
    this.#plot?.destroy();
    const [line, quiet] = [color("line"), color("quiet")];
    const axis = {
      stroke: quiet,
      grid: { stroke: line, width: 1 },
      ticks: { stroke: line, width: 1 },
      font: "12px system-ui, sans-serif",
    };
    const { format } = this.#options;
    // The sum of all stands behind, so that each is drawn over those above it.
    const series = this.#options.stacked ? this.#options.series.toReversed() : this.#options.series;
    const paths = uPlot.paths.bars({ size: [0.75, 60] });
    this.#plot = new uPlot(
      {
        width: this.#place.clientWidth,
        height: this.#height(),
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { range: withPadding(series.some((one) => one.bars)) }, y: { range: (_, low, high) => [Math.min(0, low), high > 0 ? high * 1.08 : 1] } },
        axes: [
          { ...axis, space: 90, values: timeLabels },
          { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => format(tick)) },
        ],
        series: [
          {},
          ...series.map((one) => {
            const stroke = color(one.color);
            const fill = one.bars ? stroke : faded(stroke);
            return { stroke, fill, width: one.bars ? 0 : 1.5, points: { show: false },
              ...(one.bars ? { paths } : {}) };
          }),
        ],
      },
      this.#data,
      this.#place,
    );
  }
}

/** Bars stand on their moments: the first and the last need half of their width beside them. */
function withPadding(hasBars) {
  return (plot, low, high) => {
    const [times] = plot.data;
    const padding = hasBars && times.length > 1 ? (times[1] - times[0]) / 2 : 0;
    return low === null ? [0, 1] : [low - padding, high + padding];
  };
}

/** The sums from the bottom up, the highest first: the others are drawn over it. */
function stacked(values) {
  const sums = [];
  let below = values[0]?.map(() => 0) ?? [];
  for (const one of values) {
    below = one.map((value, i) => (value ?? 0) + below[i]);
    sums.push(below);
  }
  return sums.reverse();
}

function timeLabels(plot, ticks, _axis, _space, step) {
  const language = document.documentElement.lang;
  const clock = new Intl.DateTimeFormat(language, {
    hour: "2-digit", minute: "2-digit", ...(step < 60 ? { second: "2-digit" } : {}),
  });
  const day = new Intl.DateTimeFormat(language, { month: "short", day: "numeric" });
  return ticks.map((tick) => {
    const moment = new Date(tick * 1000);
    const isMidnight = moment.getHours() === 0 && moment.getMinutes() === 0;
    return (step >= 86400 || isMidnight ? day : clock).format(moment);
  });
}

/** What a chart shows in a few words: the sum and the highest of its values. */
export function summarize(values) {
  const flat = values.flat().map((value) => value ?? 0);
  const sum = flat.reduce((one, other) => one + other, 0);
  return { sum: number(sum, 2), highest: number(flat.length ? Math.max(...flat) : 0, 2) };
}

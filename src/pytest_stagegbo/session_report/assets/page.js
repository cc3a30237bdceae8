"use strict";
(() => {
  const begun = performance.now();
  const data = JSON.parse(document.getElementById("data").textContent);
  const [ID, WORKER, OUTCOME, BEGAN, SETUP, CALL, TEARDOWN, WAITED, PROJECT, USES, RESETS, QUIET] = Array(12).keys();
  const tests = data.tests;
  const ends = tests.map((test) => test[BEGAN] + test[SETUP] + test[CALL] + test[TEARDOWN]);
  const OUTCOMES = ["passed", "failed", "error", "killed", "skipped", "xfailed", "xpassed"];
  const FAILED = new Set(["failed", "error", "killed"]);
  const WAYS = { untouched: "untouched", hot: "hot", spare: "spare", database: "spare", restart: "restart", restore: "restore", failed: "failed" };
  const ROW = 22, CURVE = 110, PAGE = 200;

  // -- small helpers

  const byId = (id) => document.getElementById(id);
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return made;
  };
  const tints = new Map(); // asking the browser takes long, and is done for each mark
  const colour = (name) => {
    const root = document.documentElement, key = `${root.dataset.theme} ${name}`;
    if (!tints.has(key)) tints.set(key, getComputedStyle(root).getPropertyValue(`--${name}`).trim());
    return tints.get(key);
  };
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const duration = (ms) => {
    if (ms < 1) return ms > 0 ? "< 1 ms" : "0 ms";
    if (ms < 999.5) return `${Math.round(ms)} ms`;
    const seconds = ms / 1000;
    if (seconds < 59.95) return `${seconds.toFixed(seconds < 9.995 ? 2 : 1)} s`;
    const whole = Math.round(seconds);
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
    return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
  };
  const elapsed = (ms, precise = false) => {
    const value = Math.max(0, Math.round(precise ? ms : ms / 1000) * (precise ? 1 : 1000));
    const seconds = Math.floor(value / 1000), two = (number) => String(number).padStart(2, "0");
    const hours = Math.floor(seconds / 3600);
    const rest = `${hours ? two(Math.floor((seconds % 3600) / 60)) : Math.floor(seconds / 60)}:${two(seconds % 60)}`;
    return `${hours ? `${hours}:` : ""}${rest}${precise ? `.${String(value % 1000).padStart(3, "0")}` : ""}`;
  };
  const dayTime = (ms) => new Date(data.began * 1000 + ms).toLocaleTimeString("en-GB");
  const bytes = (size) => {
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (Math.abs(size) < 1024) return `${Number(size.toPrecision(3))} ${unit}`;
      size /= 1024;
    }
    return `${Number(size.toPrecision(3))} TiB`;
  };
  const rank = (values, share) => {
    const sorted = [...values].sort((a, b) => a - b);
    return sorted[Math.max(1, Math.ceil(sorted.length * share)) - 1];
  };
  const names = (place) => data.sets[place];
  const several = data.runs.length > 1;
  const workerName = (worker) => {
    if (worker < 0) return "controller";
    const [run, name] = data.workers[worker];
    return several ? `${data.runs[run].host} ${name}` : name;
  };
  const waitsOf = new Map();
  data.waits.forEach((wait, number) => {
    if (wait[3] >= 0) waitsOf.set(wait[3], [...(waitsOf.get(wait[3]) || []), number]);
  });
  const waitedFor = (wait) => (names(wait[4]).length ? names(wait[4]).join(", ") : "a fresh stage");

  // -- what is shown

  const state = { text: "", worker: "", container: "", waited: false, hidden: new Set(), sort: [BEGAN, 1], rows: PAGE, selected: -1 };
  let visible = [];
  const matches = (number) => {
    const test = tests[number];
    return (
      !state.hidden.has(test[OUTCOME]) &&
      (!state.text || test[ID].toLowerCase().includes(state.text)) &&
      (state.worker === "" || test[WORKER] === Number(state.worker)) &&
      (!state.container || names(test[USES]).includes(state.container)) &&
      (!state.waited || test[WAITED] >= 100)
    );
  };

  // -- lanes: workers first, then what was done to the stages

  const rows = [], rowOfWorker = [], rowOfLane = [];
  data.runs.forEach((run, number) => {
    rows.push({ head: several ? `${run.host} ${run.id}` : "workers" });
    data.workers.forEach(([owner, name], worker) => {
      if (owner !== number) return;
      rowOfWorker[worker] = rows.length;
      rows.push({ name });
    });
  });
  let group = null;
  data.lanes.forEach(([project, name], lane) => {
    if (project !== group) rows.push({ head: project || "stage" });
    group = project;
    rowOfLane[lane] = rows.length;
    rows.push({ name });
  });

  // -- the chart

  const holder = byId("chart");
  let chart = null, layout = null, zoomed = [0, 100];
  const hatch = (tint) => {
    const canvas = element("canvas", { width: 6, height: 6 }), pen = canvas.getContext("2d");
    pen.fillStyle = colour("page"); // what lies below does not show through
    pen.fillRect(0, 0, 6, 6);
    pen.strokeStyle = tint;
    pen.lineWidth = 2;
    for (const shift of [-6, 0, 6]) {
      pen.beginPath();
      pen.moveTo(shift - 1, 7);
      pen.lineTo(shift + 7, -1);
      pen.stroke();
    }
    return { type: "pattern", image: canvas, repeat: "repeat" };
  };
  const bar = ({ share = 0.68, least = 1, fill, stroke = null, flag = null }) => (params, api) => {
    const row = api.value(0), from = api.coord([api.value(1), row]), to = api.coord([api.value(2), row]);
    const height = Math.round(api.size([0, 1])[1] * share);
    const wide = to[0] - from[0];
    const rect = { x: from[0], y: Math.round(from[1] - height / 2), width: Math.max(least, wide > 4 ? wide - 0.6 : wide), height };
    const shape = echarts.graphic.clipRectByRect(rect, params.coordSys);
    if (!shape) return null;
    const outlined = stroke && shape.width > 5;
    const drawn = { type: "rect", shape, style: { fill: stroke && !outlined ? stroke : fill, stroke, lineWidth: outlined ? 1 : 0 }, emphasis: { style: { stroke: colour("text"), lineWidth: 1 } } };
    if (!flag) return drawn;
    const tip = { type: "polygon", shape: { points: [[shape.x - 3, shape.y - 4], [shape.x + 4, shape.y - 4], [shape.x + 0.5, shape.y + 1]] }, style: { fill: flag } };
    return { type: "group", children: [drawn, tip] };
  };
  const series = (id, name, items, look, tip, z = 2) => ({
    id, name, type: "custom", xAxisIndex: 0, yAxisIndex: 0, renderItem: bar(look), data: items, encode: { x: [1, 2], y: 0 },
    z, animation: false, progressive: 0, clip: true, tooltip: { formatter: (params) => tip(params.value) },
  });
  const tooltip = (title, ...lines) =>
    element("div", { class: "tip" }, element("strong", {}, title), ...lines.filter(Boolean).map((line) => element("div", {}, line)));
  const whom = (wait) => wait[5].map((number) => `${workerName(tests[number][WORKER])}: ${tests[number][ID]}`);
  const testTip = (value) => {
    const test = tests[value[3]], used = names(test[USES]);
    return tooltip(
      test[ID],
      `${test[OUTCOME]} after ${duration(ends[value[3]] - test[BEGAN])} on ${workerName(test[WORKER])}, at ${elapsed(test[BEGAN])} (${dayTime(test[BEGAN])})`,
      `setup ${duration(test[SETUP])}, test ${duration(test[CALL])}, teardown ${duration(test[TEARDOWN])}`,
      used.length ? `used ${used.join(", ")} of ${data.projects[test[PROJECT]]}` : null,
      names(test[RESETS]).length ? `reset before: ${names(test[RESETS]).join(", ")}` : null,
      names(test[QUIET]).length ? `frozen meanwhile: ${names(test[QUIET]).join(", ")}` : null,
    );
  };
  const waitTip = (value) => {
    const wait = data.waits[value[3]], others = whom(wait);
    return tooltip(
      `waited ${duration(wait[2])} for ${waitedFor(wait)}`,
      data.texts[wait[7]],
      ...(others.length ? others.slice(0, 4).map((who) => `held by ${who}`) : [data.texts[wait[6]] ? `held by ${data.texts[wait[6]]}` : null]),
      others.length > 4 ? `and ${others.length - 4} more` : null,
    );
  };
  const resetTip = (value) => {
    const reset = data.resets[value[3]], way = data.texts[reset[4]];
    return tooltip(
      `reset of ${data.texts[reset[7]]}: ${way}, ${duration(reset[3])}`,
      reset[6] >= 0 ? `for ${tests[reset[6]][ID]}` : `behind the tests of ${workerName(reset[0])}`,
      data.texts[reset[5]] ? `since ${data.texts[reset[5]]}` : null,
    );
  };

  const categories = () => {
    const found = [];
    const count = (kind) => tests.filter((test) => test[OUTCOME] === kind).length;
    for (const kind of OUTCOMES) if (count(kind)) found.push({ group: "Tests", key: kind, name: kind, count: count(kind), tint: kind });
    if (data.waits.length) found.push({ group: "Stage", key: "wait", name: "wait", count: data.waits.length, tint: "wait", form: "hatched" });
    const ways = new Map();
    for (const reset of data.resets) {
      const way = WAYS[data.texts[reset[4]]] || "hot";
      ways.set(way, (ways.get(way) || 0) + 1);
    }
    for (const way of new Set(Object.values(WAYS))) {
      const shown = way === "spare" ? "of a database" : way;
      if (ways.has(way)) found.push({ group: "Stage", key: `reset-${way}`, name: `reset ${shown}`, count: ways.get(way), tint: way });
    }
    if (data.steps.length) found.push({ group: "Stage", key: "step", name: "provisioning", count: data.steps.length, tint: "step" });
    if (data.freezes.length) found.push({ group: "Stage", key: "frozen", name: "frozen", count: data.freezes.length, tint: "frozen", form: "hatched" });
    if (data.notices.length) found.push({ group: "Stage", key: "notice", name: "notice", count: data.notices.length, tint: "killed", form: "round" });
    let line = 0;
    for (const pool of data.pools) found.push({ group: "Free", key: `pool-${pool.name}`, name: pool.name, tint: `curve-${(line++ % 8) + 1}`, form: "line" });
    line = 0;
    for (const each of data.containers) {
      const name = data.projects.filter(Boolean).length > 1 ? `${each.project} ${each.name}` : each.name;
      found.push({ group: "Used", key: `used-${each.project}-${each.name}`, name, tint: `curve-${(line++ % 8) + 1}`, form: "line" });
    }
    return found;
  };
  const legend = categories();
  const tintOf = new Map(legend.map((each) => [each.key, each.tint]));

  const unitFor = (curves) => {
    const largest = Math.max(0, ...curves.flatMap((curve) => curve.points.map((point) => point[1])));
    return largest >= 2 ** 31 ? ["GiB", 2 ** 30] : ["MiB", 2 ** 20];
  };
  const curveSeries = (curves, grid, [unit, size], keyOf, extra = () => ({})) =>
    curves.filter((curve) => !state.hidden.has(keyOf(curve))).map((curve) => ({
      id: keyOf(curve), name: legend.find((each) => each.key === keyOf(curve)).name, type: "line", xAxisIndex: grid, yAxisIndex: grid,
      data: curve.points.map(([at, value]) => [at, value / size]), showSymbol: curve.points.length < 3, symbolSize: 5, animation: false,
      lineStyle: { width: 1.6 }, color: colour(tintOf.get(keyOf(curve))), sampling: "lttb", emphasis: { disabled: true },
      tooltip: { valueFormatter: (value) => `${value.toFixed(unit === "GiB" ? 2 : 1)} ${unit}` }, ...extra(curve, size),
    }));

  const options = () => {
    const width = holder.clientWidth, left = width < 560 ? 78 : 128, right = width < 560 ? 12 : 22;
    const text = colour("text"), faint = colour("faint"), line = colour("line"), grid = colour("grid");
    const shown = (key) => !state.hidden.has(key);
    const items = Object.fromEntries(OUTCOMES.map((kind) => [kind, []]));
    for (const number of visible) {
      const test = tests[number];
      items[test[OUTCOME]].push([rowOfWorker[test[WORKER]], test[BEGAN], ends[number], number]);
    }
    const kept = new Set(visible);
    const filtered = visible.length !== tests.length;
    const all = OUTCOMES.filter((kind) => items[kind].length).map((kind) =>
      series(kind, kind, items[kind], { fill: colour(kind), least: FAILED.has(kind) ? 2 : 0.8, flag: FAILED.has(kind) ? colour(kind) : null }, testTip, FAILED.has(kind) ? 4 : 2),
    );
    if (shown("wait")) {
      const waits = data.waits.map((wait, number) => [rowOfWorker[wait[0]], wait[1], wait[1] + wait[2], number]);
      const drawn = waits.filter((each) => !filtered || kept.has(data.waits[each[3]][3]));
      all.push(series("wait", "wait", drawn, { fill: hatch(colour("wait")), stroke: colour("wait") }, waitTip, 6));
    }
    const ways = new Map();
    data.resets.forEach((reset, number) => {
      const way = WAYS[data.texts[reset[4]]] || "hot";
      if (!shown(`reset-${way}`) || (filtered && !kept.has(reset[6]))) return;
      if (!ways.has(way)) ways.set(way, []);
      ways.get(way).push([rowOfLane[reset[1]], reset[2], reset[2] + reset[3], number]);
    });
    for (const [way, drawn] of ways) all.push(series(`reset-${way}`, `reset ${way}`, drawn, { fill: colour(way), least: 1.2 }, resetTip, way === "untouched" ? 3 : 4));
    if (shown("step")) {
      const steps = data.steps.map((step, number) => [rowOfLane[step[0]], step[1], step[1] + step[2], number]);
      const tip = ([, , , number]) => {
        const step = data.steps[number];
        return tooltip(data.texts[step[3]], `${duration(step[2])}, at ${elapsed(step[1])}, by ${workerName(step[5])}`, data.texts[step[4]] && `failed: ${data.texts[step[4]]}`);
      };
      all.push(series("step", "provisioning", steps, { fill: colour("step"), share: 0.5 }, tip));
    }
    if (shown("frozen")) {
      const freezes = data.freezes.map((freeze, number) => [rowOfLane[freeze[0]], freeze[1], freeze[1] + freeze[2], number]);
      const tip = ([, , , number]) => tooltip(`frozen for ${duration(data.freezes[number][2])}`, data.freezes[number][3] >= 0 ? `while ${tests[data.freezes[number][3]][ID]} ran, which is quiet` : null);
      all.push(series("frozen", "frozen", freezes, { fill: hatch(colour("frozen")), stroke: colour("frozen"), share: 0.5 }, tip));
    }
    if (shown("notice")) {
      all.push({
        id: "notice", type: "scatter", xAxisIndex: 0, yAxisIndex: 0, z: 8, animation: false, symbol: "circle", symbolSize: 9, color: colour("killed"),
        itemStyle: { borderColor: colour("page"), borderWidth: 1.5 },
        data: data.notices.map((notice, number) => [notice[1], notice[0] >= 0 ? rowOfWorker[notice[0]] : 0, number]),
        tooltip: { formatter: ({ value }) => tooltip(`${data.notices[value[2]][2]} at ${elapsed(value[0])}`, data.notices[value[2]][3], data.notices[value[2]][4]) },
      });
    }
    all.push(links());

    const grids = [{ left, right, top: 8, height: rows.length * ROW }];
    const axis = { nameTextStyle: { color: faint, align: "left", fontSize: 11, padding: [0, 0, 0, 8 - left] }, nameGap: 13 };
    const yAxes = [{
      type: "category", gridIndex: 0, inverse: true, data: rows.map((row) => row.head || row.name), axisTick: { show: false }, axisLine: { show: false },
      axisLabel: {
        interval: 0, margin: left - 10, align: "left", width: left - 18, overflow: "truncate", color: faint, fontSize: 12,
        formatter: (value, place) => (rows[place].head ? `{head|${value}}` : value), rich: { head: { color: text, fontWeight: 600, fontSize: 12 } },
      },
      splitLine: { show: true, interval: 0, lineStyle: { color: grid } }, triggerEvent: false,
    }];
    let bottom = 8 + rows.length * ROW + 26;
    const addCurves = (name, curves, keyOf, extra) => {
      if (!curves.length) return;
      const place = grids.length, unit = unitFor(curves);
      bottom += 36;
      grids.push({ left, right, top: bottom, height: CURVE });
      yAxes.push({
        ...axis, type: "value", gridIndex: place, name: `${name}, ${unit[0]}`, scale: true, splitNumber: 3,
        axisLabel: { color: faint, fontSize: 11, margin: 8 }, splitLine: { lineStyle: { color: grid } }, axisLine: { show: false }, axisTick: { show: false },
      });
      all.push(...curveSeries(curves, place, unit, keyOf, extra));
      bottom += CURVE + 24;
    };
    addCurves("free", data.pools, (pool) => `pool-${pool.name}`, (pool, size) => ({
      markLine: {
        silent: true, symbol: "none", animation: false, lineStyle: { type: "dashed", color: colour("failed"), width: 1 },
        label: { formatter: "floor", position: "insideEndTop", color: faint, fontSize: 11 }, data: [{ yAxis: pool.floor / size }],
      },
    }));
    addCurves("used by containers", data.containers, (each) => `used-${each.project}-${each.name}`);
    const length = Math.max(1, data.length);
    const xAxes = grids.map((_, place) => ({
      type: "time", gridIndex: place, min: 0, max: length, axisLine: { lineStyle: { color: line } }, axisTick: { lineStyle: { color: line } },
      splitLine: { show: true, lineStyle: { color: grid } },
      axisLabel: { color: faint, fontSize: 11, hideOverlap: true, formatter: (value) => elapsed(value, value % 1000 !== 0) },
      axisPointer: { show: true, type: "line", triggerTooltip: place > 0, label: { show: false }, lineStyle: { color: faint, type: "dotted" } },
    }));
    const range = { xAxisIndex: grids.map((_, place) => place), start: zoomed[0], end: zoomed[1], filterMode: "none" };
    layout = { height: bottom + 44, left };
    return {
      useUTC: true, animation: false, backgroundColor: "transparent", textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: text },
      grid: grids.map((each, place) => (place ? { ...each, tooltip: { trigger: "axis" } } : each)), xAxis: xAxes, yAxis: yAxes, series: all,
      axisPointer: { link: [{ xAxisIndex: "all" }] },
      tooltip: {
        trigger: "item", confine: true, transitionDuration: 0, backgroundColor: colour("panel"), borderColor: line, padding: [7, 10],
        textStyle: { color: text, fontSize: 12 }, axisPointer: { type: "line" },
        formatter: (found) => (Array.isArray(found) ? curveTip(found) : undefined),
      },
      dataZoom: [
        { type: "inside", ...range, zoomOnMouseWheel: "ctrl", moveOnMouseMove: true, moveOnMouseWheel: "shift", preventDefaultMouseMove: false },
        {
          type: "slider", ...range, left, right, height: 18, bottom: 12, showDataShadow: false, brushSelect: false, borderColor: line, fillerColor: `${colour("curve-1")}22`,
          handleStyle: { color: colour("page"), borderColor: faint }, moveHandleSize: 0, labelFormatter: (value) => elapsed(value), textStyle: { color: faint, fontSize: 11 },
          showDetail: width >= 560,
        },
      ],
    };
  };
  const curveTip = (found) => {
    const curves = found.filter((each) => each.seriesType === "line");
    if (!curves.length) return "";
    return tooltip(elapsed(curves[0].value[0]), ...curves.map((each) => {
      const unit = each.seriesId.startsWith("pool-") ? unitFor(data.pools) : unitFor(data.containers);
      return `${each.seriesName}: ${bytes(each.value[1] * unit[1])}`;
    }));
  };
  const links = () => {
    const lines = [];
    for (const number of waitsOf.get(state.selected) || []) {
      const wait = data.waits[number];
      for (const other of wait[5].slice(0, 8)) lines.push([rowOfWorker[tests[other][WORKER]], Math.min(wait[1] + wait[2], ends[other]), rowOfWorker[wait[0]]]);
    }
    return {
      id: "links", type: "custom", silent: true, z: 9, animation: false, clip: true, data: lines, encode: { x: 1, y: 0 }, tooltip: { show: false },
      renderItem: (_, api) => {
        const from = api.coord([api.value(1), api.value(0)]), to = api.coord([api.value(1), api.value(2)]);
        const way = to[1] > from[1] ? -1 : 1, style = { stroke: colour("text"), fill: "none", lineWidth: 1.5 };
        return { type: "group", children: [
          { type: "line", shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1] }, style },
          { type: "polygon", shape: { points: [[to[0], to[1]], [to[0] - 4, to[1] + 7 * way], [to[0] + 4, to[1] + 7 * way]] }, style: { fill: colour("text") } },
        ] };
      },
    };
  };
  const draw = () => {
    const option = options();
    holder.style.height = `${layout.height}px`;
    if (!chart) {
      chart = echarts.init(holder, null, { renderer: "canvas" });
      chart.on("click", ({ seriesId, value }) => {
        if (OUTCOMES.includes(seriesId)) select(value[3]);
        else if (seriesId === "wait") select(data.waits[value[3]][3]);
        else if (seriesId && seriesId.startsWith("reset-")) select(data.resets[value[3]][6]);
      });
      chart.on("datazoom", () => {
        const { start, end } = chart.getOption().dataZoom[0];
        zoomed = [start, end];
      });
    }
    chart.resize();
    chart.setOption(option, { notMerge: true, lazyUpdate: false });
  };
  const zoom = (start, end) => {
    const size = Math.min(100, Math.max(0.002, end - start)), from = Math.min(100 - size, Math.max(0, start));
    chart.dispatchAction({ type: "dataZoom", batch: [0, 1].map((dataZoomIndex) => ({ dataZoomIndex, start: from, end: from + size })) });
  };
  const showTime = (from, to) => {
    const span = Math.max(to - from, 20) * 3, share = 100 / Math.max(1, data.length);
    zoom((from - span / 3) * share, (from + (span * 2) / 3) * share);
  };

  // -- one test

  const outcome = (kind) => element("span", { class: "outcome" }, element("span", { class: "swatch", style: `--colour: var(--${kind})` }), kind);
  const testButton = (number) => element("button", { type: "button", class: "test", onclick: () => { select(number); holder.scrollIntoView({ block: "center" }); } }, tests[number][ID]);
  const select = (number, { move = true } = {}) => {
    if (number < 0) return;
    state.selected = number;
    const test = tests[number], box = byId("selected");
    const about = element("dl", { class: "plain" });
    const say = (term, ...texts) => texts.some(Boolean) && about.append(element("dt", {}, term), element("dd", {}, ...texts));
    say("outcome", outcome(test[OUTCOME]));
    say("time", `${duration(ends[number] - test[BEGAN])} at ${elapsed(test[BEGAN], true)} (${dayTime(test[BEGAN])}) on ${workerName(test[WORKER])}: setup ${duration(test[SETUP])}, test ${duration(test[CALL])}, teardown ${duration(test[TEARDOWN])}`);
    say("uses", names(test[USES]).length ? `${names(test[USES]).join(", ")} of ${data.projects[test[PROJECT]]}` : "");
    say("resets", names(test[RESETS]).join(", "));
    say("frozen", names(test[QUIET]).join(", "));
    for (const place of waitsOf.get(number) || []) {
      const wait = data.waits[place], others = wait[5].slice(0, 8).flatMap((other) => [element("br"), testButton(other)]);
      say("waited", `${duration(wait[2])} for ${waitedFor(wait)}${others.length ? ", which these tests held:" : data.texts[wait[6]] ? `: ${data.texts[wait[6]]}` : ""}`, ...others);
    }
    const failure = failureOf.get(number);
    if (failure !== undefined) say("failure", element("a", { href: `#failure-${number}`, onclick: () => openFailure(number) }, "what it said"));
    box.replaceChildren(element("h3", {}, test[ID]), about);
    box.hidden = false;
    draw();
    if (move) showTime(test[BEGAN], ends[number]);
  };
  const step = (direction) => {
    const wanted = visible.filter((number) => FAILED.has(tests[number][OUTCOME]));
    if (!wanted.length) return;
    const place = wanted.indexOf(state.selected);
    select(wanted[place < 0 ? (direction > 0 ? 0 : wanted.length - 1) : (place + direction + wanted.length) % wanted.length]);
  };

  // -- the head

  const facts = byId("facts");
  const fact = (term, value, more = "") => facts.append(element("div", {}, element("dt", {}, term), element("dd", {}, value, more ? element("small", {}, more) : null)));
  const head = () => {
    const projects = data.projects.filter(Boolean), about = data.runs.map((run) => run.facts), incus = about.find((each) => each.incus);
    byId("subtitle").textContent = [
      new Date(data.began * 1000).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" }),
      several ? plural(data.runs.length, "session") : data.runs[0] && data.runs[0].host,
      plural(data.workers.length, "worker"), projects.length ? plural(projects.length, "stage") : "no test used a stage", incus && `Incus ${incus.incus}`,
    ].filter(Boolean).join(" · ");
    const counts = OUTCOMES.map((kind) => [kind, tests.filter((test) => test[OUTCOME] === kind).length]).filter(([, count]) => count);
    fact("tests", tests.length.toLocaleString("en"), counts.map(([kind, count]) => `${count} ${kind}`).join(", "));
    fact("duration", duration(data.length));
    if (data.steps.length) {
      const from = Math.min(...data.steps.map((each) => each[1])), to = Math.max(...data.steps.map((each) => each[1] + each[2]));
      fact("provisioning", duration(to - from), plural(data.steps.length, "step"));
    }
    const waits = data.waits.filter((wait) => wait[2] >= 100), sum = (values) => values.reduce((total, each) => total + each, 0);
    fact("waited", duration(sum(data.waits.map((wait) => wait[2]))), waits.length ? `${plural(waits.length, "test")}, longest ${duration(Math.max(...waits.map((wait) => wait[2])))}` : "no test for 0.1 s or longer");
    const spent = data.resets.map((reset) => reset[3]);
    if (spent.length) fact("resets", spent.length.toLocaleString("en"), `median ${duration(rank(spent, 0.5))}, p95 ${duration(rank(spent, 0.95))}`);
    const grown = sum(data.containers.map((each) => each.points[each.points.length - 1][1] - each.points[0][1]));
    if (data.containers.length) fact("grew", bytes(Math.max(0, grown)), "all containers");
    const pool = data.pools.map((each) => [each, Math.min(...each.points.map((point) => point[1])) - each.floor]).sort((a, b) => a[1] - b[1])[0];
    if (pool) fact("least room", bytes(Math.max(0, pool[1])), "above the floor");
    const trouble = [...data.runs.flatMap((run) => run.trouble), ...data.notices.filter((each) => each[2] !== "note").map((each) => [each[3], each[4]].filter(Boolean).join(": "))];
    if (data.runs.some((run) => run.status === null)) trouble.push("A session was killed: this is what its processes had recorded by then.");
    if (trouble.length) {
      byId("trouble").append(element("h2", {}, "Trouble"), ...trouble.map((text) => element("p", {}, text)));
      byId("trouble").hidden = false;
    }
  };

  // -- tables

  const table = (section, heads, body) => {
    const found = byId(section).querySelector("table");
    found.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body));
    byId(section).hidden = false;
  };
  const plain = (text, number = false) => element("th", { scope: "col", class: number ? "number" : null }, text);
  const cell = (content, kind = null) => element("td", { class: kind }, content);
  const lists = () => {
    if (data.advice.length) {
      byId("advice").querySelector("ol").append(...data.advice.map(([seconds, what, why]) => element("li", {}, element("code", {}, what), ` — up to ${duration(seconds * 1000)}. `, why)));
      byId("advice").hidden = false;
    }
    const waits = data.waits.filter((wait) => wait[2] >= 1).slice(0, data.shownWaits);
    if (waits.length) {
      table("waits", [plain("waited", true), plain("for"), plain("test"), plain("worker"), plain("held by"), plain("at", true)], waits.map((wait) => {
        const others = wait[5].slice(0, 3).flatMap((other, place) => [place ? element("br") : null, testButton(other), ` on ${workerName(tests[other][WORKER])}`]);
        if (wait[5].length > 3) others.push(element("br"), `and ${wait[5].length - 3} more`);
        return element("tr", {}, cell(duration(wait[2]), "number"), cell(waitedFor(wait)), cell(wait[3] >= 0 ? testButton(wait[3]) : data.texts[wait[7]], "names"), cell(workerName(wait[0])),
          element("td", { class: "names" }, ...(others.length ? others : [data.texts[wait[6]]])), cell(elapsed(wait[1]), "number"));
      }));
    }
    const grouped = new Map();
    for (const reset of data.resets) {
      const key = `${data.texts[reset[7]]} ${data.texts[reset[4]]}`, found = grouped.get(key) || { name: data.texts[reset[7]], way: data.texts[reset[4]], times: [], reasons: new Map() };
      found.times.push(reset[3]);
      const reason = data.texts[reset[5]];
      if (reason) found.reasons.set(reason, (found.reasons.get(reason) || 0) + 1);
      grouped.set(key, found);
    }
    const rowsOf = [...grouped.values()].sort((a, b) => b.times.reduce((x, y) => x + y) - a.times.reduce((x, y) => x + y));
    if (rowsOf.length) {
      table("resets", [plain("container"), plain("method"), plain("resets", true), plain("median", true), plain("p95", true), plain("in all", true), plain("most often because")], rowsOf.map(({ name, way, times, reasons }) => {
        const reason = [...reasons].sort((a, b) => b[1] - a[1])[0];
        return element("tr", {}, cell(name), cell(element("span", { class: "outcome" }, element("span", { class: "swatch", style: `--colour: var(--${WAYS[way] || "hot"})` }), way)), cell(times.length.toLocaleString("en"), "number"),
          cell(duration(rank(times, 0.5)), "number"), cell(duration(rank(times, 0.95)), "number"), cell(duration(times.reduce((a, b) => a + b)), "number"), cell(reason ? reason[0] : "", "names"));
      }));
    }
    const told = data.runs.filter((run) => run.lines.length || Object.keys(run.facts).length);
    if (told.length) {
      byId("runs").hidden = false;
      byId("runs").querySelector("div").append(...told.map((run) => {
        const about = element("dl", { class: "plain" });
        for (const [name, value] of Object.entries(run.facts)) about.append(element("dt", {}, name), element("dd", {}, value));
        return element("details", { open: !several }, element("summary", {}, `${run.host}, ${dayTime(run.began)} to ${dayTime(run.ended)}${run.status ? `, ended with status ${run.status}` : ""}`), about, ...run.lines.map((line) => element("p", {}, line)));
      }));
    }
  };

  const failureOf = new Map(data.failures.map((failure, place) => [failure.test, place]));
  const MOST_OPEN = 50;
  let listed = 0;
  const addFailures = (upTo) => {
    const list = byId("failures").querySelector("div"), more = list.querySelector(":scope > button");
    if (more) more.remove();
    for (; listed < Math.min(upTo, data.failures.length); listed += 1) {
      const failure = data.failures[listed], test = tests[failure.test];
      const about = element("dl", { class: "plain" });
      for (const [name, value] of failure.properties) about.append(element("dt", {}, name), element("dd", {}, value));
      list.append(element("details", { id: `failure-${failure.test}` },
        element("summary", {}, outcome(test[OUTCOME]), " ", test[ID]), element("p", {}, element("button", { type: "button", onclick: () => { select(failure.test); holder.scrollIntoView({ block: "center" }); } }, "show in the timeline")),
        failure.properties.length ? about : null, failure.text ? element("pre", { tabindex: "0" }, failure.text) : null,
        ...failure.sections.map(([title, text]) => element("details", { open: title.startsWith("stage") && text.length < 1500 }, element("summary", {}, title), element("pre", { tabindex: "0" }, text)))));
    }
    if (listed < data.failures.length) list.append(element("button", { type: "button", onclick: () => addFailures(listed + MOST_OPEN) }, `Show ${Math.min(MOST_OPEN, data.failures.length - listed)} more of ${data.failures.length - listed}`));
    byId("failures").hidden = !data.failures.length;
  };
  const openFailure = (number) => {
    addFailures(failureOf.get(number) + 1);
    const entry = byId(`failure-${number}`);
    if (entry) entry.open = true;
  };

  const COLUMNS = [[OUTCOME, "outcome"], [ID, "test"], [WORKER, "worker"], [BEGAN, "at", true], ["length", "took", true], [WAITED, "waited", true], [RESETS, "resets"]];
  const valueOf = (number, column) => {
    if (column === "length") return ends[number] - tests[number][BEGAN];
    if (column === OUTCOME) return OUTCOMES.indexOf(tests[number][OUTCOME]);
    return column === RESETS ? names(tests[number][RESETS]).join(", ") : tests[number][column];
  };
  const testTable = () => {
    const [column, direction] = state.sort;
    const sorted = [...visible].sort((a, b) => {
      const x = valueOf(a, column), y = valueOf(b, column);
      return direction * (x < y ? -1 : x > y ? 1 : a - b);
    });
    const heads = COLUMNS.map(([key, name, number]) => element("th", { scope: "col", class: number ? "number" : null, "aria-sort": key === column ? (direction > 0 ? "ascending" : "descending") : null },
      element("button", { type: "button", onclick: () => { state.sort = [key, key === column ? -direction : number && key !== BEGAN ? -1 : 1]; testTable(); } }, name)));
    table("tests", heads, sorted.slice(0, state.rows).map((number) => {
      const test = tests[number];
      return element("tr", {}, cell(outcome(test[OUTCOME])), cell(testButton(number), "names"), cell(workerName(test[WORKER])), cell(elapsed(test[BEGAN]), "number"),
        cell(duration(ends[number] - test[BEGAN]), "number"), cell(test[WAITED] >= 1 ? duration(test[WAITED]) : "", "number"), cell(names(test[RESETS]).join(", ")));
    }));
    byId("more").hidden = sorted.length <= state.rows;
    byId("more").textContent = `Show ${Math.min(PAGE, sorted.length - state.rows)} more of ${(sorted.length - state.rows).toLocaleString("en")}`;
    byId("shown").textContent = visible.length === tests.length ? plural(tests.length, "test") : `${visible.length.toLocaleString("en")} of ${plural(tests.length, "test")}`;
  };

  // -- controls

  const refresh = () => {
    visible = [...tests.keys()].filter(matches);
    draw();
    testTable();
  };
  const drawLegend = () => {
    const box = byId("legend"), groups = new Map();
    for (const each of legend) groups.set(each.group, [...(groups.get(each.group) || []), each]);
    box.replaceChildren(...[...groups].map(([name, members]) => element("span", {}, element("b", {}, name), ...members.map((each) =>
      element("button", {
        type: "button", "aria-pressed": String(!state.hidden.has(each.key)), "data-key": each.key,
        onclick: ({ currentTarget }) => {
          if (!state.hidden.delete(each.key)) state.hidden.add(each.key);
          currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(each.key)));
          refresh();
        },
      }, element("span", { class: `swatch ${each.form || ""}`, style: `--colour: var(--${each.tint})` }), each.name, each.count === undefined ? null : element("span", { class: "faint" }, each.count.toLocaleString("en")))))));
  };
  const theme = (name) => {
    document.documentElement.dataset.theme = name;
    byId("theme").textContent = name === "dark" ? "Light" : "Dark";
  };
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  const later = (call, ms) => {
    let timer = 0;
    return () => {
      clearTimeout(timer);
      timer = setTimeout(call, ms);
    };
  };
  const controls = () => {
    data.workers.forEach((_, worker) => byId("worker").append(element("option", { value: worker }, workerName(worker))));
    byId("worker").prepend(element("option", { value: "", selected: true }, "all"));
    const used = [...new Set(tests.flatMap((test) => names(test[USES])))].sort();
    byId("container").append(element("option", { value: "", selected: true }, "all"), ...used.map((name) => element("option", { value: name }, name)));
    const search = later(() => { state.text = byId("search").value.trim().toLowerCase(); refresh(); }, 120);
    byId("search").addEventListener("input", search);
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    for (const [id, key] of [["worker", "value"], ["container", "value"], ["waited", "checked"]]) byId(id).addEventListener("change", ({ target }) => { state[id] = target[key]; state.rows = PAGE; refresh(); });
    byId("everything").addEventListener("click", () => {
      byId("filters").reset();
      Object.assign(state, { text: "", worker: "", container: "", waited: false, hidden: new Set(), rows: PAGE, selected: -1 });
      byId("selected").hidden = true;
      drawLegend();
      zoomed = [0, 100];
      refresh();
    });
    byId("more").addEventListener("click", () => { state.rows += PAGE; testTable(); });
    byId("theme").addEventListener("click", () => { theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"); draw(); });
    preferred.addEventListener("change", () => { theme(preferred.matches ? "dark" : "light"); draw(); });
    addEventListener("resize", later(draw, 100));
    let before = "light";
    addEventListener("beforeprint", () => {
      before = document.documentElement.dataset.theme;
      theme("light");
      holder.style.width = "980px";
      draw();
    });
    addEventListener("afterprint", () => {
      holder.style.width = "";
      theme(before);
      draw();
    });
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
      const [start, end] = zoomed, size = end - start, middle = (start + end) / 2;
      const moves = { ArrowLeft: [start - size / 5, end - size / 5], ArrowRight: [start + size / 5, end + size / 5] };
      const zooms = { "+": [middle - size / 4, middle + size / 4], "-": [middle - size, middle + size], 0: [0, 100] };
      const keys = { n: () => step(1), p: () => step(-1), "/": () => byId("search").focus(), t: () => byId("theme").click() };
      if (event.key in moves && event.target !== holder) return;
      const range = moves[event.key] || zooms[event.key];
      if (range) zoom(...range);
      else if (event.key in keys) keys[event.key]();
      else return;
      event.preventDefault();
    });
  };

  theme(preferred.matches ? "dark" : "light");
  head();
  controls();
  drawLegend();
  refresh();
  addFailures(MOST_OPEN);
  lists();
  document.documentElement.dataset.drawn = String(Math.round(performance.now() - begun));
})();

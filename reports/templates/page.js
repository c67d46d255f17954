const read = (id) => JSON.parse(document.getElementById(id).textContent);
const url = URL.createObjectURL(new Blob([read("datatables")], { type: "text/javascript" }));
const { default: DataTable } = await import(url);
URL.revokeObjectURL(url);
for (const table of document.querySelectorAll("table.data")) {
  const many = table.tBodies[0].rows.length > 12;
  new DataTable(table, { paging: false, info: false, searching: many, order: [], autoWidth: false, layout: { topStart: many ? "search" : null, topEnd: null, bottomStart: null, bottomEnd: null } });
}
const config = {
  view: { stroke: null },
  font: "system-ui, sans-serif",
  axis: { labelColor: "#5a6472", titleColor: "#1c2330", titleFontWeight: 600, gridColor: "#e9ecf1", domainColor: "#9aa3af", tickColor: "#9aa3af" },
};
const rows = (columns) => {
  const names = Object.keys(columns);
  return (columns[names[0]] ?? []).map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
};
const views = [];
for (const [id, spec] of Object.entries(read("specs"))) {
  for (const name in spec.datasets) spec.datasets[name] = rows(spec.datasets[name]);
  const { view } = await vegaEmbed(document.getElementById(id), spec, { mode: "vega-lite", renderer: "svg", actions: false, config });
  views.push([id, view]);
}
document.querySelectorAll("select.level").forEach((select, part) => {
  select.addEventListener("change", () => {
    const mine = views.filter(([id]) => id.startsWith(`s${part}-curves-`));
    mine.forEach(([, view]) => view.signal("level", Number(select.value)).runAsync());
  });
});
document.documentElement.dataset.ready = views.length;

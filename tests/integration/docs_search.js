// Searches a built site as its search page does: node docs_search.js SITE QUERY...
// Prints for each query the names of the pages that were found, the best first.
"use strict";
const fs = require("fs");
const vm = require("vm");

const [site, ...queries] = process.argv.slice(2);
const read = (name) => fs.readFileSync(`${site}/${name}`, "utf8");
const nothing = () => null;
const page = vm.createContext({
  console,
  location: { search: "" },
  addEventListener: nothing,
  document: { getElementById: nothing, addEventListener: nothing, readyState: "loading" },
  localStorage: { setItem: nothing },
  DOCUMENTATION_OPTIONS: {},
  SPHINX_HIGHLIGHT_ENABLED: false,
  _: (text) => text,
  _ready: nothing,
});
page.window = page;
// What the search page loads, in its order; constants of one script are seen by the next.
const tools = read("_static/searchtools.js").replace(
  "const _removeChildren = (element) => {", "const _removeChildren = (element) => { if (!element) return;"
);
const scripts = [read("_static/language_data.js"), tools, read("searchindex.js")];
const search = `;(${JSON.stringify(queries)}).map((query) => {
  const found = Search._performSearch(...Search._parseQuery(query));
  const pages = found.reverse().map(([name]) => name);
  return [...new Set(pages)];
})`;
const found = vm.runInContext(scripts.join("\n;\n") + search, page);
process.stdout.write(JSON.stringify(found));

// Makes the pages of the console live.  All of them work without it.
"use strict";

(() => {
  const main = document.querySelector("main");
  const note = document.getElementById("live");

  // Put what is new into what is there: rows by their key, so that focus and scrolling stay.
  const update = (old, fresh) => {
    const oldBody = old.querySelector("tbody");
    const freshBody = fresh.querySelector("tbody");
    const keyed = (body) => body && [...body.children].every((row) => row.dataset.key !== undefined);
    const isSameTable =
      keyed(oldBody) && keyed(freshBody) && old.querySelectorAll("tbody").length === 1 &&
      fresh.querySelectorAll("tbody").length === 1;
    if (!isSameTable) {
      if (old.innerHTML !== fresh.innerHTML && !old.contains(document.activeElement)) {
        old.innerHTML = fresh.innerHTML;
      }
      return;
    }
    const rows = new Map([...oldBody.children].map((row) => [row.dataset.key, row]));
    let at = oldBody.firstElementChild;
    for (const row of [...freshBody.children]) {
      let known = rows.get(row.dataset.key);
      rows.delete(row.dataset.key);
      if (!known) {
        row.classList.add("fresh");
        known = row;
      } else {
        [...row.children].forEach((cell, n) => {
          const there = known.children[n];
          if (there && there.innerHTML !== cell.innerHTML && !there.contains(document.activeElement)) {
            there.innerHTML = cell.innerHTML;
          }
        });
      }
      if (known !== at) {
        oldBody.insertBefore(known, at);
      } else {
        at = at.nextElementSibling;
      }
    }
    rows.forEach((row) => row.remove());
  };

  if (main && main.dataset.live && window.EventSource) {
    const source = new EventSource(main.dataset.live);
    source.onopen = () => { note.textContent = "live"; };
    source.onerror = () => { note.textContent = "connecting again"; };
    source.onmessage = (event) => {
      note.textContent = "live";
      const template = document.createElement("template");
      template.innerHTML = JSON.parse(event.data);
      for (const fresh of template.content.children) {
        const old = fresh.id && document.getElementById(fresh.id);
        if (old) {
          update(old, fresh);
        }
      }
      if (!document.querySelector("#job .running") && document.getElementById("job")) {
        source.close();
        note.textContent = "";
      }
    };
    window.addEventListener("pagehide", () => source.close());
  }

  // The check box above the others, which is of no use without this script.
  for (const every of document.querySelectorAll("input.every")) {
    every.hidden = false;
    every.addEventListener("change", () => {
      for (const box of every.form.querySelectorAll("input[name=key]")) {
        box.checked = every.checked;
      }
    });
  }

  // A form is sent once.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") {
      return;
    }
    setTimeout(() => {
      for (const button of event.target.querySelectorAll("button")) {
        button.disabled = true;
      }
    });
  });
  window.addEventListener("pageshow", () => {
    for (const button of document.querySelectorAll("button:disabled")) {
      button.disabled = false;
    }
  });

  // "/" goes to the search.
  document.addEventListener("keydown", (event) => {
    const isTyping = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
      const search = document.querySelector("input[type=search]");
      if (search) {
        event.preventDefault();
        search.focus();
        search.select();
      }
    }
  });
})();

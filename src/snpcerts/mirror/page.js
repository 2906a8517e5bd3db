// SPDX-License-Identifier: Apache-2.0
"use strict";
// Renews the page's content. Without scripts the page is complete, and reloads by itself.
async function renew() {
  if (document.hidden || document.activeElement.matches("input, button")) return;
  try {
    const answer = await fetch(location.href, {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of ["header", "main"]) {
      document.querySelector(part).replaceWith(fresh.querySelector(part));
    }
    document.title = fresh.title;
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
  }
}
setInterval(renew, 5000);

// Before the first paint: that there are scripts, and which theme was chosen in this browser.
"use strict";
document.documentElement.classList.add("js");
try {
  const chosen = localStorage.getItem("gpulockd-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing shows what the system says.
}

(function () {
  var box = document.getElementById("filter");
  if (!box) return;
  box.hidden = false;
  var split = document.getElementById("by-split");
  var outcome = document.getElementById("by-outcome");
  var words = document.getElementById("by-words");
  var said = document.getElementById("shown");
  var rows = Array.prototype.slice.call(document.querySelectorAll("tr.asked"));
  function show() {
    var word = words.value.toLowerCase(), count = 0;
    rows.forEach(function (row) {
      var fits = (!split.value || row.dataset.split === split.value) &&
        (!outcome.value || row.dataset.outcome === outcome.value) &&
        (!word || row.textContent.toLowerCase().indexOf(word) >= 0);
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    said.textContent = count + " of " + rows.length + " shown";
  }
  [split, outcome, words].forEach(function (field) { field.addEventListener("input", show); });
  show();
})();

// Finds and orders the cards of a section. Without it the page shows them all, in order.
// "cat" finds "cats" and not "located".
const contains = (text, word) => (/^[a-z]+$/.test(word) ? new RegExp("\\b" + word).test(text) : text.includes(word));

for (const tools of document.querySelectorAll(".tools")) {
  const section = tools.closest("section");
  const list = section.querySelector(".cards");
  const cards = [...list.children];
  const nothing = section.querySelector(".nothing");
  const [search, order, confidence] = tools.elements;
  const by = {
    order: (a, b) => a.dataset.order - b.dataset.order,
    certain: (a, b) => b.dataset.certainty - a.dataset.certainty,
    uncertain: (a, b) => a.dataset.certainty - b.dataset.certainty,
  };
  // "0.5 1": from one half to one, the upper end included where it is 1. Cards without a confidence always show.
  const within = (value) => {
    if (!confidence || value === undefined) return true;
    const [low, high] = confidence.value.split(" ").map(Number);
    return value >= low && (value < high || high === 1);
  };
  const update = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const card of cards) {
      const text = card.textContent.toLowerCase();
      card.hidden = !words.every((word) => contains(text, word)) || !within(card.dataset.confidence);
    }
    nothing.hidden = cards.some((card) => !card.hidden);
    list.append(...cards.sort(by[order.value]));
  };
  tools.addEventListener("input", update);
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
}

"""Text on a page that stands out too little from what is behind it, after WCAG 2.1, section 1.4.3."""

from __future__ import annotations

#: An expression of JavaScript: a line for each kind of element whose letters have less than 4.5 to 1, with the ratio.
#: Both colours are laid over what is below them; luminance is that of sRGB.
FAINT = r"""(() => {
  const parse = (text) => { const n = text.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const over = (top, below) => [0, 1, 2].map((k) => top[k] * top[3] + below[k] * (1 - top[3]));
  const linear = (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(parse(getComputedStyle(e).backgroundColor));
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const found = {};
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, text = walk.currentNode.data.trim();
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!text || !box.width || !box.height || style.visibility === 'hidden' || style.opacity === '0') continue;
    const below = behind(element);
    const [one, other] = [luminance(over(parse(style.color), below)), luminance(below)];
    const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (ratio < 4.5) found[`${element.tagName}.${element.className}`] = `${ratio.toFixed(2)}: ${text.slice(0, 30)}`;
  }
  return Object.entries(found).map(([kind, told]) => `${kind} ${told}`);
})()"""

// Tables: a click on a column sorts by it, highest first; a second click turns the order around.
document.querySelectorAll('thead button').forEach(button => button.onclick = () => {
  const head = button.parentNode, row = head.parentNode, column = [...row.children].indexOf(head);
  const down = head.getAttribute('aria-sort') !== 'descending' && (column > 0 || head.hasAttribute('aria-sort'));
  const value = line => { const text = line.children[column].textContent, number = parseFloat(text);
    return isNaN(number) ? text : number; };
  const rank = v => typeof v === 'number' ? 0 : v === '' || v === '-' ? 2 : 1;  // numbers, words, then blanks
  const order = (a, b) => { const x = value(a), y = value(b);
    return rank(x) - rank(y) || (down ? -1 : 1) * (x < y ? -1 : x > y ? 1 : 0); };
  const body = head.closest('table').tBodies[0];
  [...body.rows].sort(order).forEach(line => body.append(line));
  [...row.children].forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
});

// Print: all that is folded away is opened, and closed again afterwards.
let folded = [];
addEventListener('beforeprint', () => {
  folded = [...document.querySelectorAll('details:not([open])')];
  folded.forEach(part => part.open = true);
});
addEventListener('afterprint', () => folded.forEach(part => part.open = false));

// Tables: a click on a column sorts by it, highest first; a second click turns the order around.
document.querySelectorAll('thead button').forEach(button => button.onclick = () => {
  const head = button.parentNode, row = head.parentNode, column = [...row.children].indexOf(head);
  const down = head.getAttribute('aria-sort') !== 'descending' && (column > 0 || head.hasAttribute('aria-sort'));
  const value = line => { const text = line.children[column].textContent, number = parseFloat(text);
    return isNaN(number) ? text : number; };
  const order = (a, b) => { const x = value(a), y = value(b), blank = v => v === '' || v === '-';
    if (blank(x) || blank(y)) return blank(x) - blank(y);
    const less = typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === 'number' ? -1 : 1;
    return down ? -less : less; };
  const body = head.closest('table').tBodies[0];
  [...body.rows].sort(order).forEach(line => body.append(line));
  [...row.children].forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
});

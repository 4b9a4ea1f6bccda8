// Numbers and names as people read them.

/** A probability in percent, with as many digits as it is worth. */
export function percent(share) {
  const value = 100 * share;
  if (value > 99.9 && value < 100) return "> 99.9 %";
  if (value < 0.1) return value > 0 ? "< 0.1 %" : "0 %";
  return `${value.toFixed(1)} %`;
}

/** A number of bytes, as the server's own limits are stated. */
export function bytes(count) {
  if (count < 1024) return `${count} bytes`;
  const units = ["KiB", "MiB", "GiB"];
  let unit = -1;
  do {
    count /= 1024;
    unit += 1;
  } while (count >= 1024 && unit < units.length - 1);
  return `${count.toFixed(count < 10 ? 1 : 0)} ${units[unit]}`;
}

/** "1 class", "3 classes". */
export function counted(count, one, many = `${one}s`) {
  return `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
}

/** An element with text and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Numbers as people read them. Decimal units, as in data sheets: 1 GB is 10^9 bytes. */

function scaled(value: number, units: readonly string[]): string {
  let unit = 0;
  let rest = value;
  while (rest >= 999.5 && unit < units.length - 1) {
    rest /= 1000;
    unit++;
  }
  const digits = unit === 0 ? 0 : rest < 10 ? 2 : rest < 100 ? 1 : 0;
  return `${rest.toFixed(digits)} ${units[unit]}`.trimEnd();
}

export function bytes(value: number): string {
  return scaled(value, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']);
}

/** Counts of parameters: 16.2 M, 103 B. */
export function count(value: number): string {
  return scaled(value, ['', 'K', 'M', 'B', 'T']);
}

export function integer(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

export function percent(fraction: number): string {
  return `${(fraction * 100).toFixed(fraction < 0.0995 ? 1 : 0)}%`;
}

/** Three significant digits, thousands separated. */
export function measure(value: number): string {
  return value >= 1000 ? integer(value) : value.toPrecision(3);
}

/** JSON of facts; a big integer stays a number where every reader can hold it exactly, else it is text. */
export function json(value: unknown, indent = 0): string {
  return JSON.stringify(
    value,
    (_, field: unknown) => {
      if (typeof field !== 'bigint') return field;
      return Number.isSafeInteger(Number(field)) ? Number(field) : String(field);
    },
    indent,
  );
}

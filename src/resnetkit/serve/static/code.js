// curl and Python for what was just done on the page.

/** Text as one word of a POSIX shell. */
export function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function query(asked) {
  const values = { model: asked.model };
  if (asked.finds && asked.threshold !== null) values.threshold = String(asked.threshold);
  if (!asked.finds) values.top = String(asked.top);
  if (asked.reject) values.reject = "true";
  if (asked.explain !== null) values.explain = String(asked.explain);
  if (values.model === null) delete values.model;
  return values;
}

/** A file's name for curl: not taken for an option or for standard input. */
function pathOf(name) {
  return name.startsWith("-") ? `./${name}` : name;
}

/**
 * The command for `asked`: {url, names, type, model, top, reject, explain, finds, threshold, key}; `finds` is whether
 * the model is a detector.
 *
 * One picture is the body itself; several are fields of a form.
 */
export function curl(asked) {
  const values = new URLSearchParams(query(asked)).toString();
  const address = `${asked.url}predict${values ? `?${values}` : ""}`;
  const lines = ["curl"];
  if (asked.names.length === 1) {
    lines.push(`--data-binary ${quoted(`@${pathOf(asked.names[0])}`)}`, `-H ${quoted(`Content-Type: ${asked.type}`)}`);
  } else {
    for (const name of asked.names) {
      const escaped = pathOf(name).replaceAll("\\", "\\\\").replaceAll('"', '\\"');
      lines.push(`-F ${quoted(`file=@"${escaped}"`)}`);
    }
  }
  if (asked.key) lines.push('-H "X-API-Key: $RESNETKIT_API_KEY"');
  lines.push(quoted(address));
  return lines.join(" \\\n  ");
}

const EACH_CLASS = [
  '    for one in result["predictions"]:',
  '        print(result["name"], one["label"], f"{one[\'probability\']:.1%}")',
];
const EACH_OBJECT = [
  '    for one in result["detections"]:',
  '        left, top, right, bottom = one["box"]',
  '        print(result["name"], one["label"], f"{one[\'score\']:.1%}", left, top, right, bottom)',
];

/** The program for `asked`, with the library requests. */
export function python(asked) {
  const text = JSON.stringify;
  const imports = ["import requests"];
  if (asked.key) imports.unshift("import os", "");
  if (asked.explain !== null) imports.unshift("import base64", ...(asked.key ? [] : [""]));
  const values = Object.entries(query(asked)).map(([name, value]) => `${text(name)}: ${text(value)}`);
  const options = [
    `    ${text(`${asked.url}predict`)},`,
    ...(values.length ? [`    params={${values.join(", ")}},`] : []),
    '    files=[("file", open(path, "rb")) for path in paths],',
  ];
  if (asked.key) options.push('    headers={"X-API-Key": os.environ["RESNETKIT_API_KEY"]},');
  options.push("    timeout=60,");
  const names = asked.names.map((name) => text(name));
  const listed = names.join(", ");
  const paths = listed.length < 80 ? `[${listed}]` : `[\n    ${names.join(",\n    ")},\n]`;
  const lines = [
    ...imports,
    "",
    `paths = ${paths}`,
    "answer = requests.post(",
    ...options,
    ")",
    'for result in answer.json()["results"]:',
    '    if "error" in result:',
    '        print(result["name"], result["error"])',
    "        continue",
    ...(asked.finds ? EACH_OBJECT : EACH_CLASS),
  ];
  if (asked.reject) lines.push('    print(result["name"], "none of these" if result["rejected"] else "a known class")');
  if (asked.explain !== null) {
    lines.push(
      '    with open(result["name"] + ".evidence.png", "wb") as file:',
      '        file.write(base64.b64decode(result["explanation"]["png"]))',
    );
  }
  return lines.join("\n");
}

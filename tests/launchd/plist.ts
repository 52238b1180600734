/** Property lists, as far as jobs need them: written for tests, and read as launchd reads them. */

export type Value = string | number | boolean | readonly Value[] | { readonly [key: string]: Value };

/** A job's plist, with the keys that the small launchd follows. */
export interface Keys {
  readonly Label: string;
  readonly Program?: string;
  readonly ProgramArguments?: readonly string[];
  readonly EnvironmentVariables?: Readonly<Record<string, string>>;
  readonly WorkingDirectory?: string;
  readonly StandardOutPath?: string;
  readonly StandardErrorPath?: string;
  readonly RunAtLoad?: boolean;
  readonly KeepAlive?: boolean | { readonly SuccessfulExit: boolean };
  readonly ThrottleInterval?: number;
  readonly ExitTimeOut?: number;
  readonly AbandonProcessGroup?: boolean;
}

/** The XML of a plist. */
export function writePlist(value: Value): string {
  return `<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
${element(value, "")}
</plist>
`;
}

function element(value: Value, indent: string): string {
  if (typeof value === "string") return `${indent}<string>${escaped(value)}</string>`;
  if (typeof value === "number") return `${indent}<integer>${value}</integer>`;
  if (typeof value === "boolean") return `${indent}<${value}/>`;
  const deeper = `${indent}\t`;
  if (Array.isArray(value)) {
    return `${indent}<array>\n${value.map((item) => `${element(item, deeper)}\n`).join("")}${indent}</array>`;
  }
  const items = Object.entries(value).map(([key, item]) =>
    `${deeper}<key>${escaped(key)}</key>\n${element(item as Value, deeper)}\n`
  );
  return `${indent}<dict>\n${items.join("")}${indent}</dict>`;
}

function escaped(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Reads an XML plist; throws where it is none. */
export function readPlist(xml: string): Value {
  const tokens = [...xml.replaceAll(/<!--[\s\S]*?-->|<\?[\s\S]*?\?>|<!DOCTYPE[^>]*>/g, "").matchAll(/<[^>]+>|[^<]+/g)]
    .map(([token]) => token);
  let at = 0;
  const skipBlanks = () => {
    while (tokens[at]?.trim() === "") at++;
  };
  const take = (expected?: string): string => {
    const token = tokens[at++];
    if (token === undefined || (expected !== undefined && token !== expected)) {
      throw new Error(`Not a plist: ${token ?? "its end"} where ${expected ?? "something"} belongs`);
    }
    return token;
  };
  const text = (end: string): string => {
    const content = tokens[at] === end ? "" : take();
    take(end);
    return content.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&quot;", '"').replaceAll("&apos;", "'")
      .replaceAll("&amp;", "&");
  };
  const value = (): Value => {
    skipBlanks();
    const tag = take();
    if (tag === "<true/>" || tag === "<false/>") return tag === "<true/>";
    if (tag === "<string/>") return "";
    if (tag === "<string>") return text("</string>");
    if (tag === "<integer>") return Number(text("</integer>"));
    if (tag === "<array/>") return [];
    if (tag === "<dict/>") return {};
    if (tag === "<array>") return items("</array>", value);
    if (tag === "<dict>") {
      return Object.fromEntries(items("</dict>", (): [string, Value] => {
        take("<key>");
        return [text("</key>"), value()];
      }));
    }
    throw new Error(`Not a plist: ${tag}`);
  };
  const items = <T>(end: string, item: () => T): T[] => {
    const all: T[] = [];
    for (skipBlanks(); tokens[at] !== end; skipBlanks()) all.push(item());
    take(end);
    return all;
  };
  skipBlanks();
  if (!/^<plist\b/.test(take())) throw new Error("Not a plist");
  return value();
}

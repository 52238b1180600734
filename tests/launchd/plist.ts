/** Property lists, as far as jobs need them: written for tests, and read for the small launchd. */

import { parse } from "npm:plist@5.0.0";

export type Value = string | number | boolean | readonly Value[] | { readonly [key: string]: Value };

/** A job's plist, with the keys that the small launchd follows. */
export interface Keys {
  readonly Label: string;
  readonly Program?: string;
  readonly ProgramArguments?: readonly string[];
  readonly UserName?: string;
  readonly EnvironmentVariables?: Readonly<Record<string, string>>;
  readonly WorkingDirectory?: string;
  readonly StandardOutPath?: string;
  readonly StandardErrorPath?: string;
  readonly RunAtLoad?: boolean;
  readonly Disabled?: boolean;
  readonly KeepAlive?: boolean | { readonly SuccessfulExit?: boolean };
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
  const text = xml.replace(/^\uFEFF/, "");
  // The package also takes the old form without XML.
  if (!/^\s*<(\?xml|!DOCTYPE|plist)\b/.test(text)) throw new Error("Not a plist: its beginning");
  // The package reads a key without a value; launchd does not.
  if (/<\/key>\s*(<key>|<\/dict>)/.test(text.replaceAll(/<!--[^]*?-->/g, ""))) throw new Error("Not a plist: a key");
  try {
    return structuredClone(parse(text)) as Value;
  } catch (error) {
    throw new Error(`Not a plist: ${error instanceof Error ? error.message : error}`);
  }
}

/** A job's plist as launchd takes it: undefined where the file cannot be read, or names no job. */
export function readKeys(path: string): Keys | undefined {
  try {
    const keys = readPlist(Deno.readTextFileSync(path)) as unknown as Keys;
    const hasProgram = typeof keys.Program === "string" || typeof keys.ProgramArguments?.[0] === "string";
    return typeof keys.Label === "string" && keys.Label !== "" && hasProgram ? keys : undefined;
  } catch {
    return undefined;
  }
}

#!/usr/bin/env -S deno run -P
// deno-lint-ignore-file no-import-prefix -- one file that runs alone needs its versions inline
/**
 * Lets launchd run lima-guard instead of limactl: rewrites the plist that Lima made, and gives it back.
 *
 *   deno run -P install.ts INSTANCE              rewrite the job's plist and load it again
 *   deno run -P install.ts --check INSTANCE      is the job, in its file and as loaded, still run by the guard?
 *   deno run -P install.ts --uninstall INSTANCE  the plist as it was before
 *   lima-guard --install | --check | --uninstall INSTANCE      the same from the binary, without Deno
 *
 * The loop of lima_guard.ts in small: observe (the plist, the guard, launchd) → plan (pure: facts in, steps with
 * reasons out) → act (one step after the other, its effect looked at). `--dry-run` prints the plan and leaves.
 *
 * Three rules:
 *   1. At no moment is there no plist: a file is written beside and renamed over, and every failing step puts the old
 *      file and the old job back.
 *   2. Every byte that need not change stays. What is not understood in full is refused, with what to do about it.
 *   3. A plain user must not be able to change what a job of somebody else runs: neither the guard, nor a folder on the
 *      way to it, nor a link. Files in somebody's folder are written as that somebody, never as root.
 *
 * Exit statuses: 0 done, or nothing to do · 1 refused, rolled back, or (--check) not guarded · 64 usage · 66 no plist ·
 * 75 could not find out: try again · 77 not permitted.
 *
 * Sections: names and numbers · what we saw · reading: XML · reading: the plist · reading: the job · reading: command
 * lines · reading: launchctl · deciding: the new text · deciding: the layout · deciding: the old text · deciding: who
 * may write · deciding: the steps · deciding: steps for files · deciding: steps for launchd · deciding: the way back ·
 * deciding: the check · words · the host · observing: the job · observing: its user, its volume, launchd · observing:
 * the guard · acting · acting: the way back · acting: launchd · the roles · the role --check · carrying out · the real
 * host · the real host: files · command line · main.
 *
 * Exports exist for lima_guard.ts (`installMain`) and for the tests.
 * @module
 */

import { parseArgs } from "jsr:@std/cli@1.0.29/parse-args";
import { basename } from "jsr:@std/path@1.1.4/posix/basename";
import { dirname } from "jsr:@std/path@1.1.4/posix/dirname";
import { join } from "jsr:@std/path@1.1.4/posix/join";
import { parse as parsePlist } from "npm:plist@5.0.0";
import {
  DEFAULT_BUDGET_S,
  EXIT,
  type Host,
  LAUNCHD_DEFAULT_S,
  nameTrouble,
  quote,
  readPrint,
  realHost as guardHost,
  VERSION,
  worst,
} from "./lima_guard.ts";

// ────────────────────────────────────────────────────────────────────────────── names and numbers ──

/** Lima's labels (`pkg/autostart/launchd`); the file is the label and `.plist`. */
const DAEMON_LABEL = "io.lima-vm.daemon.";
const AGENT_LABEL = "io.lima-vm.autostart.";

/** Never a name that ends in `.plist`: launchd reads every one of them in its folders. */
export const BACKUP_SUFFIX = ".before-lima-guard";
export const BESIDE_SUFFIX = ".new-by-lima-guard";

/** Lima's plists have 800 bytes; 10 MB of them are an attack, or a mistake. */
export const PLIST_LIMIT_BYTES = 1024 * 1024;
/** A launchd plist nests four deep. */
const DEPTH_LIMIT = 32;

/** What a stop needs (see lima_guard.ts), and the most that launchd grants agents on macOS 26 and later. */
export const EXIT_TIMEOUT_S = DEFAULT_BUDGET_S;

/** Files in /Library/LaunchDaemons: anything looser, and launchd refuses them (122). */
const PLIST_MODE = 0o644;
const GUARD_MODE = 0o755;
/** The groups of macOS whose members may become root anyway. */
const ADMIN_GID = 80;
const WHEEL_GID = 0;

/** launchctl's codes that mean something to us (`launchctl error N`). */
const NO_PROCESS = 3;
const IO_ERROR = 5;
const IN_PROGRESS = 36;
const ALREADY = 37;
const NO_SERVICE = 113;
/** No such domain, and a domain that does not do this: nobody is logged in there. */
const NO_SESSION: readonly number[] = [112, 125];

const LAUNCHCTL_WORDS: Readonly<Record<number, string>> = {
  3: "no such process: the job is not loaded",
  5: "input/output error: the job is still loaded, still ending, disabled, or its file has a bad owner or mode",
  17: "it is loaded already",
  36: "the job is still ending",
  37: "it is loaded already, or still ending",
  64: "launchctl did not understand the command",
  109: "the plist is not valid for launchd",
  111: "the program in the plist is not valid",
  112: "there is no such domain",
  113: "there is no such job",
  119: "the job is disabled",
  122: "the plist has a bad owner or mode",
  124: "the domain is being taken down",
  125: "the domain does not do this: nobody is logged in at the screen",
  127: "the command was not found",
  134: "the job cannot be loaded in this session",
  139: "launchd has put the job aside after it could not be started",
  150: "not permitted while System Integrity Protection is on",
  155: "the program is quarantined",
  161: "switched off in System Settings > General > Login Items & Extensions",
};

/** How long things may take. launchctl can block while launchd is busy; tests shorten all of them. */
export interface Pace {
  readonly commandMs: number;
  /** The guard's ladder: its budget, a lock that it waits for, its clean-up. */
  readonly stopMs: number;
  /** Until launchd has taken notice of a process that ended. */
  readonly reapMs: number;
  /** From bootout until the job is gone, beyond the exit timeout in force. */
  readonly goneMs: number;
  /** A second of the exit timeout. */
  readonly secondMs: number;
  /** bootstrap is tried again so long while launchd says that the old job is still there. */
  readonly bootstrapMs: number;
  readonly runningMs: number;
  readonly pollMs: number;
  readonly compileMs: number;
}

export const PACE: Pace = {
  commandMs: 10_000,
  stopMs: 180_000,
  reapMs: 5_000,
  goneMs: 15_000,
  secondMs: 1000,
  bootstrapMs: 30_000,
  runningMs: 15_000,
  pollMs: 250,
  compileMs: 600_000,
};

/** A refusal: the reason, what to do about it, and the exit status. Nothing has been touched when it is thrown. */
export class Refusal extends Error {
  constructor(reason: string, readonly hint?: string, readonly status: number = EXIT.failed) {
    super(reason);
  }
}

// ──────────────────────────────────────────────────────────────────────────────────── what we saw ──

/** A value of a plist. */
export type Value = string | number | boolean | Date | Uint8Array | Value[] | Dict;
export type Dict = { [key: string]: Value };

/** An element of the XML text, and where it stands. */
export interface Node {
  readonly tag: string;
  /** The whole element, and its content. */
  readonly start: number;
  end: number;
  readonly innerStart: number;
  innerEnd: number;
  readonly isEmptyTag: boolean;
  /** The text of a leaf, decoded. */
  text: string;
  /** The elements in it; in a dict keys and values in turn. */
  readonly children: Node[];
}

/** A plist as text, as elements, and as the value that both readers agree on. */
export interface Plist {
  readonly text: string;
  readonly root: Node;
  readonly value: Dict;
}

/** The job of a plist, as far as it concerns us. */
export interface Job {
  readonly label: string;
  readonly args: readonly string[];
  readonly program?: string;
  /** The command without the guard. */
  readonly command: readonly string[];
  /** The guard that runs it, and the guard's options between the instance and `--`. */
  readonly guard?: string;
  readonly guardOptions: readonly string[];
  readonly tool: "limactl" | "colima";
  readonly userName?: string;
  readonly environment: Readonly<Record<string, string>>;
  readonly workingDirectory?: string;
  readonly stdoutPath?: string;
  readonly stderrPath?: string;
  readonly exitTimeOut?: number;
  readonly keepAlive?: Value;
  readonly startsByItself: boolean;
  readonly remarks: readonly string[];
}

/** A user, as `id -P` shows one. */
export interface User {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly home: string;
}

/** A file or folder, links not followed. `mode` has the sticky bit too. */
export interface FileLook {
  readonly path: string;
  readonly kind: "file" | "directory" | "link" | "other";
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
  readonly dev: number;
  readonly size: number;
}

/**
 * What launchd has of a job; `isEnding` after bootout, until its process is gone. `unknown` where launchctl did not
 * answer, or not in words that we can read.
 */
export type Loaded =
  | {
    readonly kind: "loaded";
    readonly args: readonly string[];
    readonly pid?: number;
    readonly isEnding: boolean;
    readonly exitTimeoutS?: number;
  }
  | { readonly kind: "absent" }
  | { readonly kind: "no session" }
  | { readonly kind: "unknown"; readonly why: string };

/** Where a job lives: `file` as it is called, `target` where a link leads. */
export interface Place {
  readonly name: string;
  readonly kind: "daemon" | "agent";
  readonly file: string;
  readonly target: string;
}

/** Everything known of one job before anything is decided. */
export interface Seen {
  readonly place: Place;
  readonly look: FileLook;
  readonly plist: Plist;
  readonly job: Job;
  readonly user: User;
  readonly backup?: { readonly text: string; readonly plist?: Plist };
  readonly limaHome: string;
  readonly defaultLimaHome: string;
  readonly otherVolume: boolean;
  readonly domain: string;
  readonly loaded: Loaded;
  /** Undefined where launchctl did not say. */
  readonly disabled: boolean | undefined;
  readonly notes: readonly string[];
}

/** The guard that the job shall run, and how it gets there. */
export interface GuardSeen {
  readonly path: string;
  /** The bytes to put there; undefined where it stands already. */
  readonly bytes?: Uint8Array;
  /** Another one stands there, which other jobs may run: it stays until the new one has answered. */
  readonly replaces: boolean;
  /** The folders that are missing, and whose folder the first existing one is. */
  readonly missing?: string;
  readonly owner: number;
  readonly sign?: string;
  readonly verify: boolean;
  readonly warnings: readonly string[];
}

/** What became of a key. */
export interface Change {
  readonly key: string;
  readonly before?: Value;
  readonly after?: Value;
}

// ─────────────────────────────────────────────────────────────────────────────────── reading: XML ──

const LEAVES = ["key", "string", "integer", "real", "date", "data", "true", "false"];
const ELEMENTS = ["plist", "dict", "array", ...LEAVES];
/** Sticky, without nested repetition of the same characters: a hostile text costs no more than its length. */
const TAG = /<(\/?)([A-Za-z][\w.-]*)((?:\s+[\w:.-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>/y;
const DOCTYPE =
  /<!DOCTYPE\s+plist(?:\s+PUBLIC\s+"-\/\/Apple(?: Computer)?\/\/DTD PLIST 1\.0\/\/EN"\s+"(?:https?:\/\/www\.apple\.com\/DTDs\/PropertyList-1\.0\.dtd|file:\/\/localhost\/System\/Library\/DTDs\/PropertyList\.dtd)")?\s*>/y;
const DECLARATION =
  /^<\?xml\s+version\s*=\s*["']1\.[01]["'](?:\s+encoding\s*=\s*["']([A-Za-z][\w.-]*)["'])?(?:\s+standalone\s*=\s*["'](?:yes|no)["'])?\s*\?>$/;
const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", apos: "'", quot: '"' };

/**
 * Reads the XML of a plist into elements with their places. Refuses whatever Apple's reader refuses, and all that could
 * cost more than its length: an internal DTD, entities beyond XML's five, depth.
 */
export function readXml(text: string): Node {
  const open: Node[] = [];
  let root: Node | undefined;
  let at = text.startsWith("\uFEFF") ? 1 : 0;
  while (at < text.length) {
    const parent = open.at(-1);
    if (text[at] !== "<") {
      const end = text.indexOf("<", at) < 0 ? text.length : text.indexOf("<", at);
      takeText(text.slice(at, end), parent, at, text);
      at = end;
    } else if (text.startsWith("<!--", at)) at = after(text, "-->", at + 4, "a comment");
    else if (text.startsWith("<![CDATA[", at)) {
      const end = after(text, "]]>", at + 9, "a CDATA section");
      const isString = parent?.tag === "string" || parent?.tag === "key";
      if (!parent || !isString) throw trouble(text, at, "a CDATA section stands outside a string");
      parent.text += plain(text.slice(at + 9, end - 3), at, text);
      at = end;
    } else if (text.startsWith("<?", at)) {
      const end = after(text, "?>", at + 2, "a processing instruction");
      if (parent) throw trouble(text, at, "a processing instruction stands in it", "remove it");
      refuseEncoding(text.slice(at, end), at, text);
      at = end;
    } else if (text.startsWith("<!", at)) at = takeDoctype(text, at, root ?? parent);
    else {
      const found = takeTag(text, at, open, root);
      root ??= found.root;
      at = found.end;
    }
  }
  if (open.length > 0) throw trouble(text, text.length, `<${open.at(-1)?.tag}> is never closed: the file is cut short`);
  if (!root) throw trouble(text, 0, "there is no <plist>");
  return root;
}

function takeTag(text: string, at: number, open: Node[], root: Node | undefined): { end: number; root?: Node } {
  TAG.lastIndex = at;
  const found = TAG.exec(text);
  if (!found) {
    const isLima = text.startsWith("<no value>", at);
    if (isLima) throw trouble(text, at, "Lima's template left `<no value>` in it", "limactl autostart enable again");
    throw trouble(text, at, `this is no tag: ${JSON.stringify(text.slice(at, at + 20))}`);
  }
  const [whole, slash, tag = "", attributes, empty] = found;
  const end = at + whole.length;
  const parent = open.at(-1);
  if (slash) {
    const node = open.pop();
    if (node?.tag !== tag || attributes || empty) throw trouble(text, at, `</${tag}> does not close <${node?.tag}>`);
    [node.innerEnd, node.end] = [at, end];
    return { end };
  }
  if (!ELEMENTS.includes(tag)) throw trouble(text, at, `<${tag}> is no element of a plist`);
  if (attributes && tag !== "plist") throw trouble(text, at, `<${tag}> has an attribute`, "remove it");
  if (parent ? !mayHold(parent, tag) : tag !== "plist" || root) throw trouble(text, at, `<${tag}> cannot stand here`);
  if (open.length >= DEPTH_LIMIT) throw trouble(text, at, `it nests deeper than ${DEPTH_LIMIT} elements`);
  const innerStart = empty ? at : end;
  const node = {
    tag,
    start: at,
    end,
    innerStart,
    innerEnd: innerStart,
    isEmptyTag: empty !== "",
    text: "",
    children: [],
  };
  parent?.children.push(node);
  if (!empty) open.push(node);
  return { end, ...parent ? {} : { root: node } };
}

/** A dict holds keys and values in turn, a plist one value, a leaf nothing. */
function mayHold(parent: Node, tag: string): boolean {
  const n = parent.children.length;
  if (tag === "plist") return false;
  if (parent.tag === "plist") return n === 0 && tag !== "key";
  if (parent.tag === "dict") return (n % 2 === 0) === (tag === "key");
  return parent.tag === "array" && tag !== "key";
}

function takeText(raw: string, parent: Node | undefined, at: number, text: string): void {
  if (!parent || !LEAVES.includes(parent.tag)) {
    if (!/^[ \t\r\n]*$/.test(raw)) {
      throw trouble(text, at, `text stands outside a value: ${JSON.stringify(raw.slice(0, 20))}`);
    }
    return;
  }
  const decoded = raw.replaceAll(/&([^;&\s]{0,12});?/g, (whole, name: string) => {
    if (whole.endsWith(";")) {
      if (ENTITIES[name] !== undefined) return ENTITIES[name];
      const code = /^#\d+$/.test(name)
        ? Number(name.slice(1))
        : /^#x[\da-f]+$/i.test(name)
        ? Number(`0${name.slice(1)}`)
        : -1;
      if (code >= 0 && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF)) return String.fromCodePoint(code);
    }
    throw trouble(text, at, `${JSON.stringify(whole)} is no entity of a plist`, "write & as &amp;");
  });
  parent.text += plain(decoded, at, text);
}

/** XML reads every line end as one LF, and has no control characters. */
function plain(raw: string, at: number, text: string): string {
  // deno-lint-ignore no-control-regex -- they are what is looked for
  if (/[\0-\x08\x0B\x0C\x0E-\x1F\uFFFE\uFFFF]/.test(raw)) throw trouble(text, at, "it has a control character");
  return raw.replaceAll(/\r\n?/g, "\n");
}

function takeDoctype(text: string, at: number, begun: Node | undefined): number {
  DOCTYPE.lastIndex = at;
  const found = DOCTYPE.exec(text);
  if (found && !begun) return at + found[0].length;
  throw trouble(text, at, "it has declarations of its own (DTD, entities)", "a launchd plist needs none: remove them");
}

/** The declaration as XML 1.0 has it, at the very beginning; other instructions only need a name. */
function refuseEncoding(instruction: string, at: number, text: string): void {
  if (!/^<\?xml(\s|\?)/i.test(instruction)) {
    if (!/^<\?[A-Za-z_][\w.-]*(\s|\?>$)/.test(instruction)) {
      throw trouble(text, at, "a processing instruction has no name");
    }
    return;
  }
  const found = DECLARATION.exec(instruction);
  if (!found || at > (text.startsWith("\uFEFF") ? 1 : 0)) {
    throw trouble(text, at, "its XML declaration is not well-formed");
  }
  const encoding = found[1] ?? "UTF-8";
  if (!/^(utf-?8|us-ascii)$/i.test(encoding)) {
    throw trouble(text, at, `its encoding is ${encoding}`, "save it as UTF-8");
  }
}

function after(text: string, mark: string, from: number, what: string): number {
  const found = text.indexOf(mark, from);
  if (found < 0) throw trouble(text, from, `${what} is never closed: the file is cut short`);
  return found + mark.length;
}

function trouble(text: string, at: number, why: string, hint?: string): Refusal {
  const line = text.slice(0, at).split("\n").length;
  return new Refusal(`Cannot read the plist: line ${line}: ${why}`, hint ?? "plutil -lint FILE");
}

// ───────────────────────────────────────────────────────────────────────────── reading: the plist ──

/** The bytes of a plist file as text; a binary plist is refused with the command that converts it. */
export function decodePlist(bytes: Uint8Array, file: string): string {
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 8));
  if (bytes.length > PLIST_LIMIT_BYTES) {
    throw new Refusal(`Cannot read the plist: it has more than ${PLIST_LIMIT_BYTES} bytes`, `ls -l ${quote(file)}`);
  }
  if (head.startsWith("bplist")) {
    throw new Refusal("Cannot edit the plist: it is a binary one", `plutil -convert xml1 ${quote(file)}`);
  }
  if (/^(\xFE\xFF|\xFF\xFE)/.test(head)) throw new Refusal("Cannot read the plist: it is UTF-16", "save it as UTF-8");
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw new Refusal("Cannot read the plist: it is not UTF-8", `plutil -convert xml1 ${quote(file)}`);
  }
  if (/^\uFEFF?\s*</.test(text)) return text;
  throw new Refusal("Cannot read the plist: it is no XML", `plutil -convert xml1 ${quote(file)}`);
}

/** Reads a plist twice, with our own reader and with the package, and refuses it where they do not agree. */
export function readPlist(text: string): Plist {
  const plist = readXml(text);
  const [root] = plist.children;
  if (root?.tag !== "dict") throw trouble(text, 0, "its root is no dict");
  const value = valueOf(root, text) as Dict;
  let other: unknown;
  try {
    other = parsePlist(text.replace(/^\uFEFF/, ""));
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw trouble(text, 0, error.message);
  }
  if (!isEqual(value, other)) {
    throw trouble(text, 0, "two readers read different things in it", "plutil -convert xml1 FILE");
  }
  return { text, root, value };
}

function valueOf(node: Node, text: string): Value {
  const wrong = (why: string, hint?: string) => trouble(text, node.start, why, hint);
  switch (node.tag) {
    case "dict":
      return dictOf(node, text);
    case "array":
      return node.children.map((child) => valueOf(child, text));
    case "string":
      return node.text;
    case "integer":
      if (/^\s*[+-]?0x/i.test(node.text)) throw wrong("a hexadecimal integer", "write it as a decimal number");
      if (!/^\s*[+-]?\d+\s*$/.test(node.text) || !Number.isSafeInteger(Number(node.text))) {
        throw wrong(`${JSON.stringify(node.text)} is no integer`);
      }
      return Number(node.text);
    case "real":
      if (!/^\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*$/i.test(node.text)) {
        throw wrong(`${JSON.stringify(node.text)} is no number`);
      }
      return Number(node.text);
    case "true":
    case "false":
      if (node.text.trim() !== "") throw wrong(`<${node.tag}> has content`);
      return node.tag === "true";
    case "date": {
      const date = new Date(node.text.trim());
      if (!/^\s*\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\s*$/.test(node.text) || Number.isNaN(date.getTime())) {
        throw wrong("no date");
      }
      return date;
    }
    case "data": {
      const base64 = node.text.replaceAll(/\s+/g, "");
      if (base64.length % 4 !== 0 || !/^[A-Za-z0-9+/]*={0,2}$/.test(base64)) throw wrong("<data> is no base64");
      return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    }
    default:
      throw wrong(`<${node.tag}> is no value`);
  }
}

function dictOf(node: Node, text: string): Dict {
  const dict: Dict = {};
  for (const [key, value] of entriesOf(node)) {
    const name = JSON.stringify(key.text);
    if (!value) throw trouble(text, key.start, `the key ${name} has no value`);
    if (Object.hasOwn(dict, key.text)) {
      throw trouble(text, key.start, `the key ${name} stands there twice`, "remove one");
    }
    if (key.text === "__proto__" || key.text === "") throw trouble(text, key.start, `the key ${name} cannot be meant`);
    dict[key.text] = valueOf(value, text);
  }
  return dict;
}

/** Keys and values of a dict, in the order of the text. */
function entriesOf(dict: Node): (readonly [Node, Node | undefined])[] {
  return dict.children.flatMap((key, i) => i % 2 === 0 ? [[key, dict.children[i + 1]] as const] : []);
}

/** A loop of its own: a callback for each of a guard's 90 million bytes takes a second. */
function isSameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Deep equality of plist values; the order of keys does not count. */
export function isEqual(a: unknown, b: unknown): boolean {
  if (a instanceof Date || b instanceof Date) return a instanceof Date && b instanceof Date && +a === +b;
  if (a instanceof Uint8Array || b instanceof Uint8Array) {
    return a instanceof Uint8Array && b instanceof Uint8Array && isSameBytes(a, b);
  }
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return Object.is(a, b);
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const [keysA, keysB] = [Object.keys(a), Object.keys(b)];
  const has = (key: string) => Object.hasOwn(b, key) && isEqual((a as Dict)[key], (b as Dict)[key]);
  return keysA.length === keysB.length && keysA.every(has);
}

// ─────────────────────────────────────────────────────────────────────────────── reading: the job ──

/** A job of launchd that starts this instance, bare or wrapped. Everything else is refused, with what to do about it. */
export function readJob({ value }: Plist, name: string): Job {
  const label = value["Label"];
  if (typeof label !== "string" || label === "") throw new Refusal("Cannot tell the job: it has no Label");
  for (const prefix of [DAEMON_LABEL, AGENT_LABEL]) {
    if (label.startsWith(prefix) && label !== prefix + name) {
      const hint = `lima-guard --install ${label.slice(prefix.length)}`;
      throw new Refusal(`Cannot take the job for ${name}: its Label is ${JSON.stringify(label)}`, hint);
    }
  }
  const args = value["ProgramArguments"];
  const isList = Array.isArray(args) && args.every((a) => typeof a === "string") && args.length > 0;
  if (!isList) throw new Refusal("Cannot tell the command: ProgramArguments is no list of strings", "plutil -p FILE");
  const program = value["Program"];
  if (program !== undefined && program !== args[0]) {
    const why = `Program is ${JSON.stringify(program)}, the first of ProgramArguments ${JSON.stringify(args[0])}`;
    throw new Refusal(`Cannot tell what the job runs: ${why}`, "make them equal, or remove Program");
  }
  const { guard, guardOptions, command } = unwrapped(args as string[], name);
  const environment = environmentOf(value);
  const tool = readCommand(command, name, environment["COLIMA_PROFILE"]);
  const text = (key: string) => {
    const v = value[key];
    if (v === undefined || typeof v === "string") return v;
    throw new Refusal(`Cannot read ${key}: it is no string`, "plutil -p FILE");
  };
  const exitTimeOut = value["ExitTimeOut"];
  if (exitTimeOut !== undefined && !(typeof exitTimeOut === "number" && Number.isInteger(exitTimeOut))) {
    throw new Refusal("Cannot read ExitTimeOut: it is no integer, and launchd ignores it", "remove it, or make it 60");
  }
  const keepAlive = value["KeepAlive"];
  const optional = {
    program: text("Program"),
    userName: text("UserName"),
    workingDirectory: text("WorkingDirectory"),
    stdoutPath: text("StandardOutPath"),
    stderrPath: text("StandardErrorPath"),
    guard,
    exitTimeOut,
    keepAlive,
  };
  return {
    label,
    args: args as string[],
    command,
    guardOptions,
    tool,
    environment,
    startsByItself: value["RunAtLoad"] === true || (keepAlive !== undefined && keepAlive !== false),
    remarks: remarksOn(value, label),
    ...Object.fromEntries(Object.entries(optional).filter(([, v]) => v !== undefined)),
  };
}

function environmentOf(value: Dict): Record<string, string> {
  const dict = value["EnvironmentVariables"];
  if (dict === undefined) return {};
  const isDict = typeof dict === "object" && !Array.isArray(dict) && !(dict instanceof Date) &&
    !(dict instanceof Uint8Array);
  if (!isDict) throw new Refusal("Cannot read EnvironmentVariables: it is no dict", "plutil -p FILE");
  // launchd ignores values that are no strings.
  return Object.fromEntries(Object.entries(dict).flatMap(([k, v]) => typeof v === "string" ? [[k, v]] : []));
}

/** What else in a job concerns a guarded stop or start: said, and left alone. */
function remarksOn(value: Dict, label: string): string[] {
  const words: string[] = [];
  for (const key of ["EnableTransactions", "EnablePressuredExit"]) {
    if (value[key] === true) words.push(`${key}: launchd may kill the job at once instead of stopping it: remove it`);
  }
  if (value["AbandonProcessGroup"] === true) {
    words.push("AbandonProcessGroup: should the guard ever be killed, launchd leaves limactl behind: remove it");
  }
  if (value["Disabled"] === true) words.push("Disabled: launchd starts it only after `launchctl enable`");
  if (label.startsWith("homebrew.mxcl.")) {
    words.push(`Homebrew's services manage it: \`brew services start|restart\` writes the plist anew; check after it`);
  }
  return words;
}

/** Takes a wrapped command apart: GUARD --run NAME [options] -- COMMAND. */
function unwrapped(args: readonly string[], name: string) {
  if (!isGuard(args)) return { command: args, guardOptions: [] };
  const end = args.indexOf("--");
  if (args[2] !== name) {
    const why = `it is wrapped for ${JSON.stringify(args[2])}`;
    throw new Refusal(`Cannot take the job for ${name}: ${why}`, `lima-guard --uninstall ${args[2]}`);
  }
  if (end < 0) throw new Refusal("Cannot tell the command: there is no `--` after lima-guard --run", "plutil -p FILE");
  return { guard: args[0] ?? "", guardOptions: args.slice(3, end), command: args.slice(end + 1) };
}

/** Whether a command is the guard's `--run`. */
export function isGuard(args: readonly string[]): boolean {
  return /^lima-guard/.test(basename(args[0] ?? "")) && args[1] === "--run";
}

// ───────────────────────────────────────────────────────────────────────── reading: command lines ──

/** Flags of `limactl` and `limactl start` that take their value from the next argument (Lima 1.0 to 2.3). */
const LIMACTL_VALUES = (
  "--log-level --log-format --timeout --name --arch --containerd --cpus --disk --dns --memory --mount --mount-only " +
  "--mount-type --network --param --port-forward --set --vm-type"
).split(" ");
/** The same of `colima start`. */
const COLIMA_VALUES = (
  "--profile -p --arch -a --cpu --cpus -c --cpu-type --memory -m --disk -d --root-disk --disk-image --runtime -r " +
  "--kubernetes-version --k3s-arg --mount -V --mount-type --vm-type -t --dns -n --dns-host --env --activate-runtime " +
  "--editor --hostname --gateway-address --network-interface --network-mode --ssh-port --port-forwarder"
).split(" ");

/** Which tool a command starts the instance with, in the foreground. */
export function readCommand(command: readonly string[], name: string, profile = ""): "limactl" | "colima" {
  const tool = basename(command[0] ?? "");
  const shown = JSON.stringify(command.join(" "));
  if (tool !== "limactl" && tool !== "colima") {
    const hint = "let ProgramArguments run limactl itself, without a shell, sudo or caffeinate";
    throw new Refusal(`Cannot wrap ${shown}: the program is ${JSON.stringify(tool)}, not limactl`, hint);
  }
  const { positionals, flags } = takeApart(command.slice(1), tool === "limactl" ? LIMACTL_VALUES : COLIMA_VALUES);
  const [verb, ...names] = positionals;
  if (verb !== "start") throw new Refusal(`Cannot wrap ${shown}: it does not start an instance`, `${tool} start`);
  const foreground = flags.get("--foreground") ?? (tool === "colima" ? flags.get("-f") : undefined);
  if (foreground === undefined || !/^(true|1|t|)$/i.test(foreground)) {
    throw new Refusal(`Cannot wrap ${shown}: without --foreground launchd does not watch it`, "add --foreground");
  }
  const started = tool === "limactl"
    ? names
    : [colimaInstance(names[0] ?? flags.get("--profile") ?? flags.get("-p") ?? profile)];
  if (names.length > 1 || started.length !== 1) {
    throw new Refusal(`Cannot wrap ${shown}: it names ${started.length} instances`, `name just ${name} in it`);
  }
  if (started[0] !== name) {
    throw new Refusal(`Cannot take the job for ${name}: it starts ${JSON.stringify(started[0])}`, `name that one`);
  }
  return tool;
}

function takeApart(args: readonly string[], valued: readonly string[]) {
  const positionals: string[] = [];
  const flags = new Map<string, string>();
  for (let i = 0; i < args.length; i++) {
    const arg = args[i] ?? "";
    if (arg === "--") return { positionals: [...positionals, ...args.slice(i + 1)], flags };
    const [flag = "", value] = /^(-[^=]*)=(.*)$/s.exec(arg)?.slice(1) ?? [arg];
    if (!arg.startsWith("-") || arg === "-") positionals.push(arg);
    else flags.set(flag, value ?? (valued.includes(flag) ? args[++i] ?? "" : ""));
  }
  return { positionals, flags };
}

/** The Lima instance of a Colima profile. */
export function colimaInstance(profile: string): string {
  const short = profile.replace(/^colima-/, "");
  return ["", "colima", "default"].includes(short) ? "colima" : `colima-${short}`;
}

// ───────────────────────────────────────────────────────────────────────────── reading: launchctl ──

/** What the answer of `launchctl print DOMAIN/LABEL` says. A killed launchctl shows as status 0 with half an answer. */
export function readLoaded(answer: Answer): Loaded {
  if (answer.late) return { kind: "unknown", why: "launchctl print did not answer in time" };
  if (answer.code === NO_SERVICE) return { kind: "absent" };
  if (NO_SESSION.includes(answer.code)) return { kind: "no session" };
  if (answer.code !== 0) return { kind: "unknown", why: `launchctl print: ${inWords(answer)}` };
  const lines = answer.stdout.split("\n");
  const first = lines.indexOf("\targuments = {");
  const end = lines.indexOf("\t}", first);
  const { pid, exitTimeoutS, program, state } = readPrint(answer.stdout);
  const args = first < 0 ? [program ?? ""] : lines.slice(first + 1, end).map((line) => line.replace(/^\t\t/, ""));
  if (args[0] === "" || (first >= 0 && end < 0)) return { kind: "unknown", why: "launchctl print gave half an answer" };
  return {
    kind: "loaded",
    args,
    isEnding: /^SIG(TERM|KILL)ed$/.test(state ?? ""),
    ...pid === undefined ? {} : { pid },
    ...exitTimeoutS === undefined ? {} : { exitTimeoutS },
  };
}

/** Whether `launchctl print-disabled DOMAIN` names the label as switched off; absent means enabled. */
export function readDisabled(text: string, label: string): boolean {
  return text.split("\n").some((line) => line.trim().startsWith(`"${label}" =>`) && /=> (disabled|true)\b/.test(line));
}

/** A user of `id -P`: ten fields, the home is the last but one. */
export function readUser(line: string): User | undefined {
  const fields = line.trim().split(":");
  const [name = "", , uid, gid] = fields;
  const home = fields.at(-2) ?? "";
  if (fields.length < 7 || name === "" || !/^\d+$/.test(uid ?? "") || !home.startsWith("/")) return undefined;
  return { name, uid: Number(uid), gid: Number(gid), home };
}

/** How a command ended, for people: launchctl's codes have words. */
export function inWords(answer: Answer): string {
  if (answer.late) return "it did not end in time";
  const words = answer.argv.includes("launchctl") ? LAUNCHCTL_WORDS[answer.code] : undefined;
  const said = answer.stderr.trim().split("\n").at(-1) ?? "";
  return [`status ${answer.code}`, ...words ? [words] : [], ...said ? [said] : []].join(": ");
}

/** The answer of a command. `late`: it was ended at its limit, and what it did is not known. */
export interface Answer {
  readonly argv: readonly string[];
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly late: boolean;
}

// ───────────────────────────────────────────────────────────────────────── deciding: the new text ──

/** What install wants of a plist. Keys that are undefined stay as they are. */
export interface Wanted {
  readonly guard: string;
  readonly exitTimeoutS?: number;
  readonly keepAlive?: boolean;
  readonly limaHome?: string;
  readonly workingDirectory?: string;
  readonly stdoutPath?: string;
  readonly stderrPath?: string;
}

/** A new text of the plist, and what is different in it. No changes: the text is as wanted already. */
export interface Rewritten {
  readonly text: string;
  readonly changes: readonly Change[];
}

interface Edit {
  readonly at: number;
  readonly until: number;
  readonly text: string;
}

const OWNED = ["ProgramArguments", "Program", "ExitTimeOut", "KeepAlive", "EnvironmentVariables"];
const MOVED = ["WorkingDirectory", "StandardOutPath", "StandardErrorPath"];

/** Rewrites the text in place: every byte outside the keys that are to change stays as it is. */
export function wrapText(plist: Plist, job: Job, wanted: Wanted): Rewritten {
  const { root, text } = plist;
  const layout = layoutOf(plist);
  const edits: Edit[] = [];
  const added: string[] = [];
  const set = (key: string, element: string) => {
    const value = nodeOf(root, key);
    if (value) edits.push({ at: value.start, until: value.end, text: element });
    else added.push(`${layout.key}<key>${key}</key>${layout.value}${element}`);
  };
  edits.push(...guardEdits(plist, job, wanted.guard));
  if (job.program !== undefined && job.program !== wanted.guard) set("Program", string(wanted.guard));
  const { exitTimeoutS, limaHome } = wanted;
  if (exitTimeoutS !== undefined && exitTimeoutS !== job.exitTimeOut) {
    set("ExitTimeOut", `<integer>${exitTimeoutS}</integer>`);
  }
  if (wanted.keepAlive && job.keepAlive === undefined) {
    set("KeepAlive", dictXml(layout, "SuccessfulExit", "<false/>"));
  }
  if (limaHome !== undefined && job.environment["LIMA_HOME"] === undefined) {
    const environment = nodeOf(root, "EnvironmentVariables");
    if (!environment || environment.isEmptyTag) {
      set("EnvironmentVariables", dictXml(layout, "LIMA_HOME", string(limaHome)));
    } else edits.push(insertInto(environment, layout, text, "LIMA_HOME", string(limaHome)));
  }
  const moved = {
    WorkingDirectory: wanted.workingDirectory,
    StandardOutPath: wanted.stdoutPath,
    StandardErrorPath: wanted.stderrPath,
  };
  for (const [key, path] of Object.entries(moved)) {
    if (path !== undefined && plist.value[key] !== path && nodeOf(root, key)) set(key, string(path));
  }
  if (added.length > 0) {
    const at = endOfLine(text, layout.list.end);
    edits.push({ at, until: at, text: added.join("") });
  }
  const changed = checked(plist, applied(text, edits), [...OWNED, ...MOVED]);
  const wrappedJob = readJob(changed.plist, nameIn(job));
  const isAsWanted = wrappedJob.guard === wanted.guard && isEqual(wrappedJob.command, job.command) &&
    (exitTimeoutS === undefined || wrappedJob.exitTimeOut === exitTimeoutS) &&
    (job.program === undefined || wrappedJob.program === wanted.guard);
  if (!isAsWanted) {
    throw new Refusal("Cannot rewrite the plist: what came out is not what was wanted (a fault of ours)");
  }
  return changed;
}

/** The instance that a job starts, from its own command. */
function nameIn(job: Job): string {
  const { positionals, flags } = takeApart(
    job.command.slice(1),
    job.tool === "limactl" ? LIMACTL_VALUES : COLIMA_VALUES,
  );
  return job.tool === "limactl" ? positionals[1] ?? "" : colimaInstance(
    positionals[1] ?? flags.get("--profile") ?? flags.get("-p") ?? job.environment["COLIMA_PROFILE"] ?? "",
  );
}

/** GUARD --run NAME -- before the old command, each on a line like the old ones; or another guard's path in its place. */
function guardEdits(plist: Plist, job: Job, guard: string): Edit[] {
  const { list, item } = layoutOf(plist);
  const [first] = list.children;
  if (!first || job.guard === guard) return [];
  if (job.guard !== undefined) return [{ at: first.start, until: first.end, text: string(guard) }];
  const prefix = [guard, "--run", nameIn(job), "--"].map((arg) => `${string(arg)}${item}`).join("");
  return [{ at: first.start, until: first.start, text: prefix }];
}

// ─────────────────────────────────────────────────────────────────────────── deciding: the layout ──

/** The white space that this text puts before a key, between key and value, before an item, and its indentation. */
interface Layout {
  readonly list: Node;
  readonly key: string;
  readonly value: string;
  readonly item: string;
  readonly indent: string;
}

function layoutOf({ root, text }: Plist): Layout {
  const [key, list] = entriesOf(root).find(([key]) => key.text === "ProgramArguments") ?? [];
  if (!key || !list) throw new Refusal("Cannot find ProgramArguments in the text (a fault of ours)");
  const between = text.slice(key.end, list.start);
  const [before, item] = [blankBefore(text, key.start), blankBefore(text, list.children[0]?.start ?? list.innerStart)];
  const indent = item.startsWith(before) && before.includes("\n")
    ? item.slice(before.length)
    : before.includes("\n")
    ? "\t"
    : "";
  return { list, key: before, value: /^\s*$/.test(between) ? between : before, item, indent };
}

/** Behind what a person has noted at the end of the line. */
function endOfLine(text: string, at: number): number {
  const note = /(?:[ \t]*<!--(?:(?!-->)[^\r\n])*-->)+(?=[\r\n])/y;
  note.lastIndex = at;
  return at + (note.exec(text)?.[0].length ?? 0);
}

function blankBefore(text: string, at: number): string {
  let from = at;
  while (from > 0 && " \t\r\n".includes(text[from - 1] ?? "x")) from--;
  return text.slice(from, at);
}

function nodeOf(dict: Node, key: string): Node | undefined {
  return entriesOf(dict).find(([k]) => k.text === key)?.[1];
}

function string(text: string): string {
  return `<string>${text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")}</string>`;
}

function dictXml({ key, value, indent }: Layout, name: string, element: string): string {
  return `<dict>${key}${indent}<key>${name}</key>${value === key ? key + indent : value}${element}${key}</dict>`;
}

/** Another entry at the end of a dict: laid out like the last one there is. */
function insertInto(dict: Node, layout: Layout, text: string, name: string, element: string): Edit {
  const [key, value] = entriesOf(dict).at(-1) ?? [];
  if (!key || !value) {
    const words = `${layout.key}${layout.indent}<key>${name}</key>${layout.value}${element}`;
    return { at: dict.innerStart, until: dict.innerStart, text: words };
  }
  const between = text.slice(key.end, value.start);
  const blank = blankBefore(text, key.start);
  const words = `${blank}<key>${name}</key>${/^\s*$/.test(between) ? between : blank}${element}`;
  return { at: value.end, until: value.end, text: words };
}

function applied(text: string, edits: readonly Edit[]): string {
  const sorted = edits.toSorted((a, b) => a.at - b.at);
  let [done, at] = ["", 0];
  for (const edit of sorted) {
    if (edit.at < at) throw new Refusal("Cannot rewrite the plist: two edits overlap (a fault of ours)");
    done += text.slice(at, edit.at) + edit.text;
    at = edit.until;
  }
  return done + text.slice(at);
}

/** Reads the new text again: but for the named keys it must say exactly what the old one said. */
function checked(old: Plist, text: string, keys: readonly string[]): Rewritten & { plist: Plist } {
  const plist = readPlist(text);
  const rest = (value: Dict) => Object.fromEntries(Object.entries(value).filter(([key]) => !keys.includes(key)));
  const env = (value: Dict) => ({ ...value["EnvironmentVariables"] as Dict | undefined, LIMA_HOME: "" });
  if (!isEqual(rest(old.value), rest(plist.value)) || !isEqual(env(old.value), env(plist.value))) {
    throw new Refusal("Cannot rewrite the plist: more than the named keys would change (a fault of ours)");
  }
  const changes = keys.flatMap((key): Change[] => {
    const [before, after] = [old.value[key], plist.value[key]];
    if (isEqual(before, after)) return [];
    return [{ key, ...before === undefined ? {} : { before }, ...after === undefined ? {} : { after } }];
  });
  return { plist, text, changes };
}

// ───────────────────────────────────────────────────────────────────────── deciding: the old text ──

/**
 * Takes the guard out of the text again, in place. The backup knows what our keys said before; where nothing else was
 * changed since, what comes out are the backup's very bytes. Without a backup only the command goes back.
 */
export function unwrapText(plist: Plist, job: Job, backup: Plist | undefined): Rewritten {
  const { root, text } = plist;
  const { list } = layoutOf(plist);
  const command = list.children[job.args.length - job.command.length];
  const first = list.children[0];
  if (job.guard === undefined || !first || !command) return { text, changes: [] };
  const edits: Edit[] = [{ at: first.start, until: command.start, text: "" }];
  const restore = (key: string, isOurs: (now: Value, before: Value | undefined) => boolean) => {
    const [now, before] = [nodeOf(root, key), backup && nodeOf(backup.root, key)];
    if (!now || !backup || !isOurs(plist.value[key] ?? "", backup.value[key])) return;
    if (before) edits.push({ at: now.start, until: now.end, text: backup.text.slice(before.start, before.end) });
    else edits.push(removal(root, key, text));
  };
  const program = job.command[0] ?? "";
  if (job.program !== undefined) {
    const raw = backup && backup.value["Program"] === program ? nodeOf(backup.root, "Program") : undefined;
    const now = nodeOf(root, "Program");
    const element = raw && backup ? backup.text.slice(raw.start, raw.end) : string(program);
    if (now) edits.push({ at: now.start, until: now.end, text: element });
  }
  restore("ExitTimeOut", (now, before) => now !== before);
  restore("KeepAlive", (now, before) => before === undefined && isEqual(now, { SuccessfulExit: false }));
  restore("WorkingDirectory", (now, before) => now === "/" && before !== undefined);
  restore("StandardOutPath", (now, before) => isOurLog(now) && before !== undefined);
  restore("StandardErrorPath", (now, before) => isOurLog(now) && before !== undefined);
  edits.push(...environmentEdits(plist, backup));
  return checked(plist, applied(text, edits), [...OWNED, ...MOVED]);
}

function environmentEdits({ root, text, value }: Plist, backup: Plist | undefined): Edit[] {
  const now = nodeOf(root, "EnvironmentVariables");
  const wasThere = (backup?.value["EnvironmentVariables"] as Dict | undefined)?.["LIMA_HOME"] !== undefined;
  if (!now || !backup || wasThere || !nodeOf(now, "LIMA_HOME")) return [];
  const before = nodeOf(backup.root, "EnvironmentVariables");
  const isAlone = Object.keys(value["EnvironmentVariables"] as Dict).length === 1;
  if (isAlone && !before) return [removal(root, "EnvironmentVariables", text)];
  if (isAlone && before?.isEmptyTag) {
    return [{ at: now.start, until: now.end, text: backup.text.slice(before.start, before.end) }];
  }
  return [removal(now, "LIMA_HOME", text)];
}

function isOurLog(path: Value): boolean {
  return typeof path === "string" && /\/Logs\/lima-guard\/[^/]+\.std(out|err)\.log$/.test(path);
}

/** Takes a key out, with its value and the white space before it. */
function removal(dict: Node, key: string, text: string): Edit {
  const [node, value] = entriesOf(dict).find(([k]) => k.text === key) ?? [];
  if (!node || !value) throw new Refusal(`Cannot find ${key} in the text (a fault of ours)`);
  return { at: node.start - blankBefore(text, node.start).length, until: value.end, text: "" };
}

/** What install wants of this job, with these options; refused where it contradicts what stands there. */
export function wantedOf(seen: Seen, guard: string, options: Options, logs: string): Wanted {
  const { job, limaHome, place } = seen;
  const there = job.environment["LIMA_HOME"];
  if (options.limaHome !== undefined && there !== undefined && there !== options.limaHome) {
    const why = `EnvironmentVariables has LIMA_HOME ${JSON.stringify(there)}, not ${JSON.stringify(options.limaHome)}`;
    throw new Refusal(`Cannot tell where the instance lives: ${why}`, `limactl autostart enable ${place.name}`);
  }
  const now = job.exitTimeOut ?? 0;
  const exitTimeoutS = options.exitTimeoutS ?? (now < EXIT_TIMEOUT_S ? EXIT_TIMEOUT_S : now);
  const log = (path: string | undefined, kind: string) =>
    path === undefined || (path.startsWith("/") && !isUnder(path, limaHome) && !path.startsWith("/Volumes/"))
      ? {}
      : { [kind === "stdout" ? "stdoutPath" : "stderrPath"]: join(logs, `${place.name}.${kind}.log`) };
  const moved = seen.otherVolume
    ? {
      ...job.workingDirectory === undefined ? {} : { workingDirectory: "/" },
      ...log(job.stdoutPath, "stdout"),
      ...log(job.stderrPath, "stderr"),
    }
    : {};
  return {
    guard,
    exitTimeoutS,
    keepAlive: options.keepAlive,
    ...limaHome === seen.defaultLimaHome ? {} : { limaHome },
    ...moved,
  };
}

function isUnder(path: string, folder: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

// ──────────────────────────────────────────────────────────────────────── deciding: who may write ──

/** What is wrong with a path that a job shall run, or be read from; and what is only worth a warning. */
export interface Judgement {
  readonly trouble?: string;
  readonly hint?: string;
  readonly warnings: readonly string[];
}

/**
 * Who could change what stands at the end of a path: its file, every folder on the way, and every link with its folder.
 * Only root, the job's user, and those who may become root anyway (group admin) may; for a job of root, root alone.
 * A sticky folder protects what lies in it, as long as that belongs to one of them.
 */
export function judgeWay(
  way: readonly FileLook[],
  user: { readonly uid: number; readonly name: string },
  admins: "may" | "may not" = user.uid === 0 ? "may not" : "may",
): Judgement {
  const warnings: string[] = [];
  for (const link of way) {
    const hint = `ls -ld ${quote(link.path)}; sudo chown root:wheel ${quote(link.path)}; sudo chmod go-w ${
      quote(link.path)
    }`;
    if (link.uid !== 0 && link.uid !== user.uid) {
      return {
        trouble: `${link.path} belongs to user ${link.uid}, who could change what ${user.name} runs`,
        hint,
        warnings,
      };
    }
    // A link has no mode of its own: its folder decides.
    if (link.kind === "link") continue;
    const isSticky = link.kind === "directory" && (link.mode & 0o1000) !== 0;
    if ((link.mode & 0o002) !== 0 && !isSticky) {
      return { trouble: `${link.path} can be written by everybody`, hint, warnings };
    }
    if ((link.mode & 0o020) === 0 || isSticky) continue;
    const isAdmin = link.gid === ADMIN_GID || link.gid === WHEEL_GID;
    if (!isAdmin || admins === "may not") {
      return { trouble: `${link.path} can be written by group ${link.gid}`, hint, warnings };
    }
    warnings.push(`${link.path} can be written by group ${link.gid === ADMIN_GID ? "admin" : "wheel"}`);
  }
  return { warnings };
}

/** A sticky folder like /tmp: it keeps what lies in it, but others may be the first to make what shall lie there. */
function isOpen({ mode, gid }: FileLook): boolean {
  return (mode & 0o002) !== 0 || ((mode & 0o020) !== 0 && gid !== ADMIN_GID && gid !== WHEEL_GID);
}

/** How a command or a file is made for this user: as ourselves, through sudo, or not at all. */
export interface Actor {
  readonly uid: number;
  readonly canAsk: boolean;
}

/** `sudo` as it can be used here: without a terminal it must not ask. */
function sudo(actor: Actor): string[] {
  return actor.canAsk ? ["sudo"] : ["sudo", "-n"];
}

/** What comes before a command that shall run as this user; files are written by their owner, never by root for others. */
export function prefixFor(actor: Actor, uid: number, kind: "daemon" | "agent"): readonly string[] {
  if (uid === actor.uid) return [];
  if (actor.uid === 0) return ["sudo", "-n", "-H", "-u", `#${uid}`];
  if (uid === 0 && kind === "daemon") return sudo(actor);
  if (kind === "daemon") return [...sudo(actor), "-H", "-u", `#${uid}`];
  throw new Refusal(
    `Cannot act for user ${uid}: you are user ${actor.uid}`,
    `sudo -u '#${uid}' lima-guard …`,
    EXIT.denied,
  );
}

// ──────────────────────────────────────────────────────────────────────────── deciding: the steps ──

/** A step of a plan: plain data. `what` is what is printed, in a dry run and before it is done: for a command, itself. */
export interface Step {
  readonly kind:
    | "write"
    | "rename"
    | "remove"
    | "run"
    | "handshake"
    | "stop"
    | "bootout"
    | "wait"
    | "bootstrap"
    | "verify";
  readonly what: string;
  readonly because: string;
  readonly argv?: readonly [string, ...string[]];
  /** The bytes to write, or to hand to the command. */
  readonly bytes?: Uint8Array;
  /** What is written, by us or by the command: read again afterwards. */
  readonly path?: string;
  readonly to?: string;
  /** What must stand there after a rename. */
  readonly becomes?: { readonly bytes: Uint8Array; readonly mode: number; readonly uid: number };
  readonly mode?: number;
  readonly gid?: number;
  readonly expect?: Expected;
  readonly user?: string;
  /** The job's process: gone when a stop has succeeded. */
  readonly pid?: number;
  readonly outcome?: string;
}

/** What `launchctl print` must say at the end. */
export interface Expected {
  readonly args: readonly string[];
  readonly exitTimeoutS: number;
  readonly isRunning: boolean;
}

/** What is to be reached: the text of the file, the guard in its place, and whether launchd shall know. */
export interface Target {
  readonly role: "install" | "uninstall";
  readonly seen: Seen;
  readonly rewritten: Rewritten;
  readonly job: Job;
  readonly guard?: GuardSeen;
  readonly reload: boolean;
  /** The guard that stops the instance; undefined where there is none, and launchd must do. */
  readonly stopWith?: string;
  /** Log files to make, for a job whose own folder is not always there. */
  readonly logs: readonly string[];
  readonly onMac: boolean;
}

function command(kind: Step["kind"], argv: readonly string[], because: string, more: Partial<Step> = {}): Step {
  const [program = "", ...rest] = argv;
  const redirect = more.bytes ? " >/dev/null" : "";
  return { kind, what: argv.map(quote).join(" ") + redirect, because, argv: [program, ...rest], ...more };
}

/** The whole plan of an install or uninstall; empty where all is as wanted. */
export function planSteps(target: Target, actor: Actor): Step[] {
  const { seen, rewritten, role } = target;
  const { place } = seen;
  const isFileNew = rewritten.changes.length > 0;
  const steps = [
    ...target.guard ? guardSteps(target.guard, seen, actor) : [],
    ...target.logs.flatMap((log) => logSteps(log, seen, actor)),
    ...isFileNew && seen.job.guard === undefined ? backupSteps(seen, actor) : [],
    ...isFileNew ? plistSteps(target, actor) : [],
    ...target.reload ? reloadSteps(target, actor) : [],
  ];
  const backup = place.target + BACKUP_SUFFIX;
  if (role === "uninstall" && seen.backup && (isFileNew || seen.backup.text === seen.plist.text)) {
    const prefix = prefixFor(actor, seen.look.uid, place.kind);
    const because = "the plist is as it was before";
    steps.push(
      prefix.length === 0
        ? { kind: "remove", what: `remove ${backup}`, because, path: backup }
        : command("remove", [...prefix, "rm", "-f", backup], because, { path: backup }),
    );
  }
  // The ticket first: a password must not be asked for in the middle, with the job half-way.
  const needsSudo = actor.uid !== 0 && steps.some((s) => s.argv?.[0] === "sudo");
  const ticket = actor.canAsk ? ["sudo", "-v"] : ["sudo", "-n", "true"];
  return needsSudo ? [command("run", ticket, "the daemon belongs to root"), ...steps] : steps;
}

// ────────────────────────────────────────────────────────────────────── deciding: steps for files ──

/** Writes a file beside its place, as its owner, so that a rename can put it there in one go. */
function writeBeside(
  path: string,
  bytes: Uint8Array,
  mode: number,
  look: { uid: number; gid: number },
  prefix: readonly string[],
  because: string,
) {
  const beside = path + BESIDE_SUFFIX;
  // root:wheel, as launchd wants its daemons.
  const gid = look.uid === 0 ? WHEEL_GID : look.gid;
  if (prefix.length === 0) {
    const words = `write ${beside}`;
    return [{ kind: "write", what: words, because, path: beside, bytes, mode, gid }] satisfies Step[];
  }
  return [
    command("run", [...prefix, "tee", beside], because, { bytes, path: beside }),
    ...look.uid === 0 ? [command("run", [...prefix, "chown", `0:${gid}`, beside], "the owner it must have")] : [],
    command("run", [...prefix, "chmod", mode.toString(8).padStart(4, "0"), beside], "the mode it must have"),
  ];
}

function rename(
  path: string,
  becomes: Required<Step>["becomes"] | undefined,
  prefix: readonly string[],
  because: string,
): Step {
  const beside = path + BESIDE_SUFFIX;
  const more = { to: path, ...becomes ? { becomes } : {} };
  if (prefix.length > 0) return command("run", [...prefix, "mv", "-f", beside, path], because, more);
  return { kind: "rename", what: `rename it to ${path}`, because, path: beside, ...more };
}

function backupSteps({ place, look, plist }: Seen, actor: Actor): Step[] {
  const prefix = prefixFor(actor, look.uid, place.kind);
  const backup = place.target + BACKUP_SUFFIX;
  const bytes = new TextEncoder().encode(plist.text);
  const mode = look.mode & 0o777 & (place.kind === "daemon" ? PLIST_MODE : 0o777);
  return [
    ...writeBeside(backup, bytes, mode, look, prefix, "the plist as it is now"),
    rename(backup, { bytes, mode, uid: look.uid }, prefix, "the backup"),
  ];
}

function plistSteps({ seen, rewritten, role, onMac }: Target, actor: Actor): Step[] {
  const { place, look } = seen;
  const prefix = prefixFor(actor, look.uid, place.kind);
  const bytes = new TextEncoder().encode(rewritten.text);
  const mode = place.kind === "daemon" ? PLIST_MODE : look.mode & 0o777;
  const because = role === "install" ? "the plist with the guard" : "the plist without the guard";
  const lint = command("run", ["plutil", "-lint", place.target + BESIDE_SUFFIX], "Apple's own reader must take it");
  return [
    ...writeBeside(place.target, bytes, mode, look, prefix, because),
    ...onMac ? [lint] : [],
    rename(place.target, { bytes, mode, uid: look.uid }, prefix, "at once: there is always a plist"),
  ];
}

function guardSteps(guard: GuardSeen, { place, user }: Seen, actor: Actor): Step[] {
  const steps: Step[] = [];
  if (guard.bytes) {
    const prefix = prefixFor(actor, guard.owner, place.kind);
    const beside = guard.path + BESIDE_SUFFIX;
    if (guard.missing !== undefined) {
      steps.push(command("run", [...prefix, "mkdir", "-p", guard.missing], "the guard's folder"));
    }
    const gid = guard.owner === 0 ? WHEEL_GID : user.gid;
    const look = { uid: guard.owner, gid };
    // Signing changes the bytes.
    const becomes = guard.sign === undefined ? { bytes: guard.bytes, mode: GUARD_MODE, uid: guard.owner } : undefined;
    steps.push(...writeBeside(guard.path, guard.bytes, GUARD_MODE, look, prefix, "the guard, its bytes written anew"));
    if (guard.sign !== undefined) {
      const because = guard.sign === "-"
        ? "its signature is not valid, and Apple silicon runs nothing unsigned"
        : "--sign";
      steps.push(command("run", [...prefix, "codesign", "--force", "--sign", guard.sign, beside], because));
    }
    if (guard.replaces) {
      const argv = [...prefixFor(actor, user.uid, place.kind), beside, "--version"];
      steps.push(
        command("handshake", argv, "the one that is there stays if this one does not run", { user: user.name }),
      );
    }
    steps.push(rename(guard.path, becomes, prefix, "at once: a guard that runs keeps its own"));
  }
  if (guard.verify) steps.push(command("run", ["codesign", "--verify", guard.path], "its signature"));
  const argv = [...prefixFor(actor, user.uid, place.kind), guard.path, "--version"];
  steps.push(command("handshake", argv, `it must answer to ${user.name}, where it stands`, { user: user.name }));
  return steps;
}

function logSteps(path: string, { place, user }: Seen, actor: Actor): Step[] {
  const because = "the job's log must not wait for the volume";
  if (place.kind === "agent") {
    const prefix = prefixFor(actor, user.uid, place.kind);
    return [command("run", [...prefix, "mkdir", "-p", dirname(path)], because)];
  }
  const prefix = prefixFor(actor, 0, place.kind);
  return [
    command("run", [...prefix, "mkdir", "-p", dirname(path)], because),
    command("run", [...prefix, "touch", path], because),
    command("run", [...prefix, "chown", `${user.uid}:${user.gid}`, path], `it is ${user.name}'s`),
  ];
}

// ──────────────────────────────────────────────────────────────────── deciding: steps for launchd ──

function reloadSteps(target: Target, actor: Actor): Step[] {
  const { seen, job } = target;
  const { domain, loaded } = seen;
  const service = `${domain}/${job.label}`;
  const prefix = launchctlPrefix(seen, actor);
  const steps: Step[] = [];
  const isRunning = loaded.kind === "loaded" && loaded.pid !== undefined;
  if (isRunning) steps.push(...stopSteps(target, loaded.pid, actor));
  if (loaded.kind === "loaded") {
    steps.push(
      command("bootout", [...prefix, "launchctl", "bootout", service], "launchd keeps the old job until then"),
    );
    steps.push({ kind: "wait", what: `wait until ${service} is gone`, because: "launchd takes no new job before" });
  }
  steps.push(...loadSteps(seen, job, prefix, isRunning));
  return steps;
}

/** The guard's ladder on the process that the job has now. */
function stopSteps({ seen, stopWith }: Target, pid: number | undefined, actor: Actor): Step[] {
  const { place, user } = seen;
  if (stopWith === undefined || pid === undefined) return [];
  const prefix = prefixFor(actor, user.uid, place.kind);
  const argv = [...prefix, stopWith, "--stop", place.name, "--lima-home", seen.limaHome];
  return [command("stop", argv, "launchd's own stop would cut the guest off", { pid })];
}

function loadSteps({ place, domain }: Seen, job: Job, prefix: readonly string[], isRunning: boolean): Step[] {
  const target = `${domain}/${job.label}`;
  const kickstart = command(
    "run",
    [...prefix, "launchctl", "kickstart", target],
    "it ran before, and does not start by itself",
  );
  const expect = { args: job.args, exitTimeoutS: job.exitTimeOut ?? LAUNCHD_DEFAULT_S, isRunning };
  return [
    command("run", [...prefix, "launchctl", "enable", target], "a leftover `disable` would refuse it"),
    command("bootstrap", [...prefix, "launchctl", "bootstrap", domain, place.file], "launchd reads the plist", {
      expect,
    }),
    ...isRunning && !job.startsByItself ? [kickstart] : [],
    { kind: "verify", what: `look at launchctl print ${target}`, because: "a status alone proves nothing", expect },
  ];
}

function launchctlPrefix({ domain }: Seen, actor: Actor): readonly string[] {
  return domain === "system" && actor.uid !== 0 ? sudo(actor) : [];
}

// ───────────────────────────────────────────────────────────────────────── deciding: the way back ──

/** What there is after a step has failed. */
export interface Now {
  readonly text: string | undefined;
  readonly loaded: Loaded;
}

/** Loaded with these arguments, and not about to be gone. */
function isLoadedAs(loaded: Loaded, args: readonly string[] | undefined): boolean {
  return loaded.kind === "loaded" && !loaded.isEnding && isEqual(loaded.args, args);
}

/** Whether a plan that was made for what launchd had then is still one for what it has now. */
function isStillThat(then: Loaded, now: Loaded): boolean {
  if (then.kind !== "loaded") return then.kind === now.kind;
  if (now.kind !== "loaded") return then.isEnding && now.kind === "absent";
  // Another process of the same job is stopped like the first one.
  const isRunning = now.pid !== undefined;
  return isEqual(then.args, now.args) && then.isEnding === now.isEnding && isRunning === (then.pid !== undefined);
}

/** Back to the old file and the old job, from wherever a failure has left them. Empty where nothing has changed. */
export function planBack(goal: Target, now: Now, actor: Actor): Step[] {
  const { seen, reload } = goal;
  const { place, look, plist, loaded: before, domain, job } = seen;
  const steps: Step[] = [];
  if (now.text !== plist.text) {
    const prefix = prefixFor(actor, look.uid, place.kind);
    const bytes = new TextEncoder().encode(plist.text);
    const mode = place.kind === "daemon" ? PLIST_MODE : look.mode & 0o777;
    steps.push(...writeBeside(place.target, bytes, mode, look, prefix, "the plist as it was"));
    steps.push(rename(place.target, { bytes, mode, uid: look.uid }, prefix, "the old plist again"));
  }
  if (!reload || now.loaded.kind === "no session") return steps;
  const target = `${domain}/${job.label}`;
  const prefix = launchctlPrefix(seen, actor);
  const isSame = before.kind === "loaded" && isLoadedAs(now.loaded, before.args);
  const wasRunning = before.kind === "loaded" && before.pid !== undefined;
  if (isSame) {
    const runs = now.loaded.kind === "loaded" && now.loaded.pid !== undefined;
    const expect = { args: now.loaded.kind === "loaded" ? now.loaded.args : [], exitTimeoutS: 0, isRunning: true };
    if (!wasRunning || runs) return steps;
    steps.push(command("run", [...prefix, "launchctl", "kickstart", target], "it ran before"));
    return [...steps, { kind: "verify", what: `look at launchctl print ${target}`, because: "it ran before", expect }];
  }
  if (now.loaded.kind !== "absent") {
    // A guard ends its instance gracefully by itself; a bare limactl would be cut off.
    const isBare = now.loaded.kind === "loaded" && !isGuard(now.loaded.args);
    if (isBare) steps.push(...stopSteps(goal, now.loaded.pid, actor));
    steps.push(command("bootout", [...prefix, "launchctl", "bootout", target], "this is not the old job"));
    steps.push({ kind: "wait", what: `wait until ${target} is gone`, because: "launchd takes no new job before" });
  }
  if (before.kind === "loaded") steps.push(...loadSteps(seen, job, prefix, wasRunning));
  if (seen.disabled) steps.push(command("run", [...prefix, "launchctl", "disable", target], "it was disabled"));
  return steps;
}

// ──────────────────────────────────────────────────────────────────────────── deciding: the check ──

/** A job as `--check` judges it: what is wrong, and what is worth a word. `guard`: what the guard answered. */
export function judgeCheck(
  seen: Seen,
  guard: { readonly trouble?: string; readonly version?: string } | undefined,
  options: Pick<Options, "exitTimeoutS">,
): { troubles: string[]; notes: string[]; unknown: string[] } {
  const { job, loaded } = seen;
  const troubles: string[] = [];
  const notes = [...seen.notes, ...job.remarks];
  const unknown: string[] = [];
  const needed = options.exitTimeoutS ?? EXIT_TIMEOUT_S;
  const inFile = job.exitTimeOut ?? LAUNCHD_DEFAULT_S;
  if (job.guard === undefined) {
    troubles.push("the plist does not run lima-guard (Lima writes it anew at `autostart enable`)");
  } else if (guard?.trouble !== undefined) troubles.push(guard.trouble);
  else if (guard?.version !== undefined && guard.version !== VERSION) {
    notes.push(`the guard is version ${guard.version}, this is ${VERSION}`);
  }
  if (inFile < needed) troubles.push(`the plist grants ${inFile} s for a stop, of ${needed} s`);
  if (loaded.kind === "unknown") unknown.push(loaded.why);
  if (loaded.kind === "absent") troubles.push("the job is not loaded");
  if (loaded.kind === "no session") {
    notes.push("nobody is logged in at the screen: the job is loaded at the next login");
  }
  if (seen.disabled) troubles.push("the job is disabled: launchd does not start it");
  if (seen.disabled === undefined) unknown.push("launchctl print-disabled did not say whether the job is disabled");
  if (loaded.kind === "loaded") {
    if (!isGuard(loaded.args)) troubles.push("the loaded job does not run lima-guard");
    else if (!isEqual(loaded.args, job.args)) troubles.push("the loaded job is not the one in the plist");
    if (loaded.exitTimeoutS !== undefined && loaded.exitTimeoutS < Math.min(needed, inFile)) {
      troubles.push(`launchd has an exit timeout of ${loaded.exitTimeoutS} s in force, of ${needed} s`);
    }
    if (loaded.isEnding) troubles.push("the job is ending, and will not be loaded then");
    if (loaded.pid === undefined) notes.push("the job does not run now");
  }
  if (seen.otherVolume && job.workingDirectory !== undefined && job.workingDirectory !== "/") {
    troubles.push("it is on another volume: launchd cannot start the guard before that is mounted");
  }
  return { troubles, notes, unknown };
}

// ────────────────────────────────────────────────────────────────────────────────────────── words ──

/** The lines that differ, with three around them, as `diff -u` shows them. */
export function diff(before: string, after: string): string[] {
  const [a, b] = [before.split("\n"), after.split("\n")];
  let [head, tail] = [0, 0];
  const most = Math.min(a.length, b.length);
  while (head < most && a[head] === b[head]) head++;
  while (tail < most - head && a[a.length - 1 - tail] === b[b.length - 1 - tail]) tail++;
  if (head === a.length && head === b.length) return [];
  const middle = pairLines(a.slice(head, a.length - tail), b.slice(head, b.length - tail));
  const [first, last] = [Math.max(0, head - 3), a.length - tail];
  const shown = [
    ...a.slice(first, head).map((l) => ` ${l}`),
    ...middle,
    ...a.slice(last, last + 3).map((l) => ` ${l}`),
  ];
  return [`@@ -${first + 1} +${first + 1} @@`, ...shown.map((line) => line.replace(/\r$/, ""))];
}

/** The longest common subsequence of a few lines; of very many, all old ones and all new ones. */
function pairLines(a: readonly string[], b: readonly string[]): string[] {
  if (a.length * b.length > 250_000) return [...a.map((l) => `-${l}`), ...b.map((l) => `+${l}`)];
  const width = b.length + 1;
  const longest = new Uint32Array((a.length + 1) * width);
  const at = (i: number, j: number) => longest[i * width + j] ?? 0;
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i * width + j] = a[i] === b[j] ? at(i + 1, j + 1) + 1 : Math.max(at(i + 1, j), at(i, j + 1));
    }
  }
  const lines: string[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) [lines.push(` ${a[i++]}`), j++];
    else if (i < a.length && (j === b.length || at(i + 1, j) >= at(i, j + 1))) lines.push(`-${a[i++]}`);
    else lines.push(`+${b[j++]}`);
  }
  return lines;
}

/** What became of one job: the document that `--json` prints, field by field. */
export interface Report {
  readonly name: string;
  readonly state: "guarded" | "not guarded" | "refused" | "rolled back" | "broken" | "unknown" | "missing";
  readonly status: number;
  readonly stage: null;
  readonly seconds: Readonly<Record<string, number>>;
  readonly steps: readonly Pick<Step, "kind" | "what" | "because" | "outcome">[];
  readonly blockers: readonly { readonly what: string; readonly because: string; readonly hint?: string }[];
  readonly notes: readonly { readonly what: string; readonly because: string }[];
  readonly changes: readonly Change[];
  readonly plist: string | null;
  /** The result in one line, and the diff, for people. */
  readonly summary: string;
  readonly diff: readonly string[];
}

function report(
  name: string,
  state: Report["state"],
  status: number,
  summary: string,
  more: Partial<Report> = {},
): Report {
  const empty = { steps: [], blockers: [], notes: [], changes: [], plist: null, diff: [], seconds: {} };
  return { name, state, status, stage: null, summary, ...empty, ...more };
}

/** The results for people. */
export function tellReports(reports: readonly Report[], isDry: boolean): string {
  if (reports.length === 0) return "no Lima job\n";
  return reports.flatMap((r) => [
    `${r.name}: ${r.summary}`,
    ...isDry && r.diff.length > 0 ? [`--- ${r.plist}`, `+++ ${r.plist}`, ...r.diff] : [],
    ...isDry ? r.steps.map((s) => `  would ${describeStep(s)}`) : [],
    ...r.blockers.map((b) => `  ${b.what}: ${b.because}${b.hint === undefined ? "" : ` (hint: ${b.hint})`}`),
    ...r.notes.map((n) => `  note: ${n.because}`),
  ]).join("\n") + "\n";
}

/** A step in words: what a dry run shows, and what is said before it is done. */
export function describeStep({ what, because, outcome }: Pick<Step, "what" | "because" | "outcome">): string {
  return `${what}  (${because})${outcome === undefined ? "" : `: ${outcome}`}`;
}

// ─────────────────────────────────────────────────────────────────────────────────────── the host ──

/** Everything that touches the world: what the guard's own host can do, and a dozen things more. */
export interface InstallHost extends
  Pick<
    Host,
    | "os"
    | "uid"
    | "env"
    | "clockMs"
    | "pause"
    | "realPath"
    | "list"
    | "remove"
    | "rename"
    | "alive"
    | "stdout"
    | "stderr"
  > {
  readonly arch: string;
  /** There is a person who can be asked. */
  readonly canAsk: boolean;
  readonly pace: Pace;
  readonly folders: {
    readonly daemons: string;
    readonly logs: string;
    readonly guards: string;
    readonly boot: readonly string[];
  };
  /** This program, where it is a compiled one; else the folder of the script. */
  readonly self: { readonly binary?: string; readonly folder?: string };
  /** The first four bytes of what counts as a compiled program here; the stand-ins of the tests are scripts. */
  readonly programs?: readonly string[];
  /** lstat(2). */
  lookAt(path: string): FileLook | undefined;
  linkTarget(path: string): string | undefined;
  /** A regular file's bytes, at most so many; undefined where it may not be read. */
  bytes(path: string, most: number): Uint8Array | undefined;
  /** Makes a file that must not be there yet, with its bytes on the disk when this returns. */
  writeNew(path: string, bytes: Uint8Array, mode: number, gid: number): void;
  /** Waits until what a folder or file holds is on the disk. */
  sync(path: string): void;
  isReadOnly(path: string): boolean;
  /** A lock on a folder, or undefined where somebody has it. */
  lock(folder: string): { close(): void } | undefined;
  run(argv: readonly [string, ...string[]], options: RunOptions): Promise<Answer>;
  confirm(question: string): Promise<boolean>;
  progress(text: string): { finish(): void };
  compile(folder: string, limitMs: number): Promise<string | Answer>;
  onSignal(take: () => void): () => void;
}

export interface RunOptions {
  readonly limitMs: number;
  readonly input?: Uint8Array;
  /** Printed before it runs: the words of the plan, for what changes something. */
  readonly words?: string;
}

// ───────────────────────────────────────────────────────────────────────────── observing: the job ──

/** Finds the plist of an instance: Lima's own, or the one that is named. */
function findPlace(host: InstallHost, name: string, options: Options): Place {
  const bad = nameTrouble(name);
  if (bad !== undefined) {
    throw new Refusal(`Cannot take ${JSON.stringify(name)} as instance name: ${bad}`, undefined, EXIT.usage);
  }
  const home = host.env("HOME");
  const daemon = join(host.folders.daemons, `${DAEMON_LABEL}${name}.plist`);
  const agent = home ? join(home, "Library/LaunchAgents", `${AGENT_LABEL}${name}.plist`) : undefined;
  const isThere = (path: string | undefined): path is string => path !== undefined && host.lookAt(path) !== undefined;
  if (options.plist !== undefined) return placeOf(host, name, options.plist, options);
  if (isThere(daemon) && isThere(agent)) {
    const hint = `limactl autostart disable ${name} removes the agent; or --plist FILE decides`;
    throw new Refusal(`Cannot choose: ${name} starts at boot (${daemon}) and at login (${agent})`, hint);
  }
  const found = [daemon, agent].find(isThere);
  if (found !== undefined) return placeOf(host, name, found, options);
  const where = `${daemon}${agent === undefined ? "" : ` nor ${agent}`}`;
  const hint = `limactl autostart enable ${name}; --plist FILE names another one`;
  throw new Refusal(`Cannot find a job of ${name}: neither ${where}`, hint, EXIT.noInstance);
}

function placeOf(host: InstallHost, name: string, named: string, options: Options): Place {
  const file = named.startsWith("/") ? named : join(host.realPath(".").ok ?? "/", named);
  const target = host.realPath(file);
  if (target.trouble === "denied") {
    throw new Refusal(`Cannot read ${file}: ${target.why}`, `sudo lima-guard …`, EXIT.denied);
  }
  if (target.trouble) throw new Refusal(`Cannot find ${file}: ${target.why}`, "ls -l FILE", EXIT.noInstance);
  const isDaemon = dirname(file) === host.folders.daemons;
  const isAgent = /\/Library\/LaunchAgents$/.test(dirname(file));
  if (!isDaemon && !isAgent && !options.noReload && !options.dryRun && options.role !== "check") {
    throw new Refusal(
      `Cannot load ${file}: launchd does not read jobs from its folder`,
      "--no-reload changes the file only",
    );
  }
  return { name, kind: isDaemon ? "daemon" : "agent", file, target: target.ok };
}

/** Every Lima job that can be seen from here: for `--all`. */
function allNames(host: InstallHost): string[] {
  const home = host.env("HOME");
  const names = (folder: string, prefix: string) => {
    const listed = host.list(folder);
    if (listed.trouble !== undefined && listed.trouble !== "absent") {
      const status = listed.trouble === "denied" ? EXIT.denied : EXIT.tryAgain;
      throw new Refusal(`Cannot list ${folder}: ${listed.why}`, `ls -ld ${quote(folder)}`, status);
    }
    return (listed.ok ?? []).filter((n) => n.startsWith(prefix) && n.endsWith(".plist"))
      .map((n) => n.slice(prefix.length, -".plist".length)).filter((n) => nameTrouble(n) === undefined);
  };
  const agents = home ? names(join(home, "Library/LaunchAgents"), AGENT_LABEL) : [];
  return [...new Set([...names(host.folders.daemons, DAEMON_LABEL), ...agents])].sort();
}

function readFileOf(host: InstallHost, path: string): { look: FileLook; text: string } {
  const look = host.lookAt(path);
  if (look?.kind !== "file") throw new Refusal(`Cannot read ${path}: it is no file`, `ls -l ${quote(path)}`);
  if (look.size > PLIST_LIMIT_BYTES) {
    throw new Refusal(
      `Cannot read the plist: it has ${look.size} bytes, more than ${PLIST_LIMIT_BYTES}`,
      `ls -l ${quote(path)}`,
    );
  }
  const bytes = host.bytes(path, PLIST_LIMIT_BYTES + 1);
  if (!bytes) {
    throw new Refusal(`Cannot read ${path}: its mode does not permit it`, `ls -l ${quote(path)}`, EXIT.denied);
  }
  return { look, text: decodePlist(bytes, path) };
}

/** Everything about a job, before anything is decided. Changes nothing. */
async function observe(host: InstallHost, name: string, options: Options): Promise<Seen> {
  const place = findPlace(host, name, options);
  const { look, text } = readFileOf(host, place.target);
  const plist = readPlist(text);
  const job = readJob(plist, name);
  const isLimas = job.label === DAEMON_LABEL + name || job.label === AGENT_LABEL + name;
  if (options.plist === undefined && `${job.label}.plist` !== basename(place.file)) {
    throw new Refusal(
      `Cannot take ${place.file}: its Label is ${JSON.stringify(job.label)}`,
      `limactl autostart enable ${name}`,
    );
  }
  if (job.tool === "colima" && options.plist === undefined) {
    throw new Refusal("Cannot take a Colima job without --plist FILE");
  }
  const user = await jobUser(host, place, look, job);
  const defaultLimaHome = join(user.home, ".lima");
  const limaHome = limaHomeOf(host, job, user, name, options);
  const label = job.label;
  const domain = place.kind === "daemon" ? "system" : `gui/${user.uid}`;
  const launchd = await observeLaunchd(host, domain, label, user.uid);
  const backup = backupOf(host, place, name);
  const otherVolume = isOtherVolume(host, join(limaHome, name));
  const notes = [
    ...isLimas && job.label.startsWith(AGENT_LABEL)
      ? ["a login agent ends at logout; a headless Mac wants a daemon"]
      : [],
    ...launchd.disabled ? [`the job is disabled: install enables it`] : [],
  ];
  return {
    place,
    look,
    plist,
    job,
    user,
    limaHome,
    defaultLimaHome,
    otherVolume,
    notes,
    ...backup ? { backup } : {},
    ...launchd,
  };
}

// ─────────────────────────────────────────────────────── observing: its user, its volume, launchd ──

/** The user the job runs as. Lima refuses to run as root, so no job may. */
async function jobUser(host: InstallHost, place: Place, look: FileLook, job: Job): Promise<User> {
  const onMac = host.os === "darwin";
  // launchd reads UserName in a daemon's plist; one that lies elsewhere is to become one.
  const isAgent = place.kind === "agent" && (job.userName === undefined || /\/LaunchAgents$/.test(dirname(place.file)));
  const who = isAgent ? String(look.uid) : job.userName;
  if (!isAgent && (who === undefined || who === "root" || who === "0")) {
    const hint = `limactl autostart enable ${place.name} --condition=boot writes one with UserName`;
    throw new Refusal(`Cannot wrap ${place.file}: it would run as root (no UserName), and Lima refuses that`, hint);
  }
  if (isAgent && look.uid === 0 && onMac) {
    throw new Refusal(
      `Cannot wrap ${place.file}: it belongs to root, and launchd loads an agent of its own user only`,
      `sudo chown USER ${quote(place.file)}`,
    );
  }
  // Off a Mac the Mac's users are not known; their homes have a fixed place.
  if (!onMac) {
    const home = isAgent ? /^\/Users\/[^/]+/.exec(job.workingDirectory ?? "")?.[0] : undefined;
    return { name: who ?? "", uid: look.uid, gid: look.gid, home: home ?? `/Users/${who}` };
  }
  const answer = await host.run(["id", "-P", who ?? ""], { limitMs: host.pace.commandMs });
  const user = answer.code === 0 && !answer.late ? readUser(answer.stdout) : undefined;
  if (user) return user;
  throw new Refusal(`Cannot find user ${who}: ${inWords(answer)}`, `id -P ${who}`, EXIT.tryAgain);
}

/** Where the instance lives: as told, as the plist says, or as the tool itself would find it. */
function limaHomeOf(host: InstallHost, job: Job, user: User, name: string, options: Options): string {
  const there = options.limaHome ?? job.environment["LIMA_HOME"];
  if (there !== undefined) return there;
  if (job.tool === "colima") return join(colimaHome(host, job, user), "_lima");
  const folder = job.workingDirectory;
  const isInstance = folder !== undefined && basename(folder) === name && folder.startsWith("/");
  return isInstance ? dirname(folder) : join(user.home, ".lima");
}

function colimaHome(host: InstallHost, job: Job, user: User): string {
  const told = job.environment["COLIMA_HOME"];
  if (told !== undefined) return told;
  const [old, xdg] = [join(user.home, ".colima"), join(user.home, ".config/colima")];
  return !host.lookAt(old) && host.lookAt(xdg) ? xdg : old;
}

/** macOS has two boot volumes, one for the system and one for the rest; whatever is on neither is mounted later. */
function isOtherVolume(host: InstallHost, dir: string): boolean {
  const real = host.realPath(dir).ok;
  const look = real === undefined ? undefined : host.lookAt(real);
  if (!look) return dir.startsWith("/Volumes/");
  return !host.folders.boot.some((folder) => host.lookAt(folder)?.dev === look.dev);
}

function backupOf(host: InstallHost, place: Place, name: string): Seen["backup"] {
  const path = place.target + BACKUP_SUFFIX;
  if (!host.lookAt(path)) return undefined;
  try {
    const { text } = readFileOf(host, path);
    const plist = readPlist(text);
    // A backup of something else knows nothing of this job.
    return readJob(plist, name).guard === undefined ? { text, plist } : { text };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { text: "" };
  }
}

/** What launchd has of a job, and in which domain: an agent that was loaded over ssh is in user/UID. */
async function observeLaunchd(host: InstallHost, domain: string, label: string, uid: number) {
  if (host.os !== "darwin") return { domain, loaded: { kind: "absent" } as Loaded, disabled: false };
  const limit = { limitMs: host.pace.commandMs };
  const ask = async (domain: string) => readLoaded(await host.run(["launchctl", "print", `${domain}/${label}`], limit));
  let loaded = await ask(domain);
  if (domain !== "system" && loaded.kind !== "loaded") {
    const other = await ask(`user/${uid}`);
    if (other.kind === "loaded") [domain, loaded] = [`user/${uid}`, other];
    else if (loaded.kind === "absent") {
      const session = await host.run(["launchctl", "print", domain], limit);
      if (session.code === NO_SERVICE || NO_SESSION.includes(session.code)) loaded = { kind: "no session" };
    }
  }
  const off = await host.run(["launchctl", "print-disabled", domain], limit);
  const isTold = off.code === 0 && !off.late && off.stdout.includes("}");
  const disabled = isTold ? readDisabled(off.stdout, label) : loaded.kind === "no session" ? false : undefined;
  return { domain, loaded, disabled };
}

// ─────────────────────────────────────────────────────────────────────────── observing: the guard ──

/** A compiled guard has some 90 MB; what has more is something else. */
const GUARD_LIMIT_BYTES = 512 * 1024 * 1024;
const GUARD_NAME = "lima-guard";

/** Every file, folder and link on the way to a path, as far as it exists. */
export function wayTo(host: Pick<InstallHost, "lookAt" | "linkTarget">, path: string): FileLook[] {
  const way: FileLook[] = [];
  let todo = path.split("/").filter((part) => part !== "");
  let at = "/";
  const root = host.lookAt("/");
  if (root) way.push(root);
  for (let links = 0; todo.length > 0;) {
    const [part = "", ...rest] = todo;
    todo = rest;
    if (part === ".") continue;
    const next = part === ".." ? dirname(at) : join(at, part);
    const look = host.lookAt(next);
    if (!look) return way;
    way.push(look);
    if (look.kind !== "link") {
      at = next;
      continue;
    }
    if (++links > 40) throw new Refusal(`Cannot follow ${path}: too many links`, `ls -l ${quote(path)}`);
    const to = host.linkTarget(next) ?? "";
    if (to.startsWith("/")) at = "/";
    todo = [...to.split("/").filter((p) => p !== ""), ...todo];
  }
  return way;
}

/** The guard that the job is to run, and what must be done to have it there. Changes nothing but `dist`, by compiling. */
async function observeGuard(host: InstallHost, seen: Seen, options: Options): Promise<GuardSeen> {
  const path = options.guard ?? join(options.guardDir ?? host.folders.guards, GUARD_NAME);
  if (!path.startsWith("/")) {
    throw new Refusal(`Cannot take ${path} as guard: launchd wants an absolute path`, "--guard /…");
  }
  const source = options.guard === undefined ? await guardSource(host, path, options) : undefined;
  const there = host.realPath(path).ok;
  const isSame = source === undefined ||
    (there !== undefined && options.sign === undefined && source.bytes !== undefined &&
      isEqual(bytesOf(host, there), source.bytes));
  const way = wayTo(host, isSame ? path : dirname(path));
  const deepest = way.findLast((look) => look.kind === "directory");
  const judged = judgeWay(way, seen.user);
  if (judged.trouble !== undefined) throw new Refusal(`Cannot let the job run ${path}: ${judged.trouble}`, judged.hint);
  const warnings = judged.warnings.map((w) => `${w}: only trust it as far as you trust them`);
  const owner = deepest?.uid ?? 0;
  if (isSame) {
    refuseScript(host, path, there);
    const signed = await isSigned(host, path);
    if (!signed && host.arch === "aarch64") {
      throw new Refusal(`Cannot use ${path}: its signature is not valid`, `codesign --force --sign - ${quote(path)}`);
    }
    return { path, owner, replaces: false, verify: signed, warnings };
  }
  if (options.guard === undefined && owner === 0 && host.uid !== 0 && seen.place.kind === "agent") {
    const hint = `sudo mkdir -p ${quote(dirname(path))} and run this as root; or --guard-dir ~/.local/libexec`;
    throw new Refusal(`Cannot put the guard into ${dirname(path)}: it belongs to root`, hint, EXIT.denied);
  }
  if (deepest && isOpen(deepest)) {
    const why = `everybody can make files in ${deepest.path}, and may have this one open before it is in place`;
    throw new Refusal(`Cannot put the guard at ${path}: ${why}`, "--guard-dir DIR");
  }
  const look = host.lookAt(path);
  if (look && look.kind !== "file") {
    throw new Refusal(`Cannot put the guard at ${path}: there is a ${look.kind}`, `ls -ld ${quote(path)}`);
  }
  if (!source.bytes) warnings.push(`the guard would be compiled now: ${source.from}`);
  const signed = !source.bytes || await isSigned(host, source.from);
  const missing = deepest && host.lookAt(dirname(path)) === undefined ? { missing: dirname(path) } : {};
  const sign = options.sign ?? (signed || host.arch !== "aarch64" || host.os !== "darwin" ? undefined : "-");
  const verify = host.os === "darwin" && (signed || sign !== undefined);
  const replaces = look !== undefined;
  return {
    path,
    bytes: source.bytes ?? new Uint8Array(),
    owner,
    replaces,
    verify,
    warnings,
    ...missing,
    ...sign === undefined ? {} : { sign },
  };
}

async function isSigned(host: InstallHost, path: string): Promise<boolean> {
  if (host.os !== "darwin") return false;
  const answer = await host.run(["codesign", "--verify", path], { limitMs: host.pace.commandMs });
  if (answer.late || answer.code === 127) {
    throw new Refusal(`Cannot verify ${path}: ${inWords(answer)}`, "codesign --verify", EXIT.tryAgain);
  }
  return answer.code === 0;
}

function bytesOf(host: InstallHost, path: string): Uint8Array | undefined {
  const look = host.lookAt(path);
  return look?.kind === "file" && look.size <= GUARD_LIMIT_BYTES ? host.bytes(path, GUARD_LIMIT_BYTES) : undefined;
}

/** A boot-time job must not depend on Deno's cache, which macOS may purge, or on the network. */
function refuseScript(host: InstallHost, path: string, real: string | undefined): void {
  const bytes = real === undefined ? undefined : bytesOf(host, real);
  if (!bytes) throw new Refusal(`Cannot use ${path} as guard: there is no such file that can be read`, "--guard PATH");
  if ((host.lookAt(real ?? "")?.mode ?? 0) & 0o111) {
    if (isProgram(host, bytes)) return;
    const why = "it is no compiled program, and a job at boot cannot wait for Deno's cache or the network";
    throw new Refusal(`Cannot use ${path} as guard: ${why}`, "deno task compile; --guard dist/lima-guard-…");
  }
  throw new Refusal(`Cannot use ${path} as guard: it is not executable`, `chmod 0755 ${quote(path)}`);
}

/** Mach-O, thin or universal; ELF where this is tried out on Linux. */
function isProgram(host: InstallHost, bytes: Uint8Array): boolean {
  const magic = [...bytes.subarray(0, 4)].map((n) => n.toString(16).padStart(2, "0")).join("");
  return (host.programs ?? ["cffaedfe", "cafebabe", "7f454c46"]).includes(magic);
}

const alreadyRead = new WeakMap<InstallHost, Map<string, Uint8Array>>();

/** The bytes of a program that many jobs of one run are given. */
function readOnce(host: InstallHost, path: string): Uint8Array | undefined {
  const known = alreadyRead.get(host) ?? new Map<string, Uint8Array>();
  const bytes = known.get(path) ?? bytesOf(host, path);
  if (bytes) alreadyRead.set(host, known.set(path, bytes));
  return bytes;
}

/** A compiled guard: this very program, one in `dist`, the one that is in place, or one compiled now. */
async function guardSource(
  host: InstallHost,
  place: string,
  options: Options,
): Promise<{ from: string; bytes: Uint8Array | undefined } | undefined> {
  const { binary, folder } = host.self;
  const os = host.os === "darwin" ? "apple-darwin" : "unknown-linux-gnu";
  const target = `${host.arch}-${os}`;
  const dist = folder === undefined
    ? []
    : [join(folder, "dist", `lima-guard-${target}`), join(folder, "dist", "lima-guard")];
  const take = (from: string) => {
    const real = host.realPath(from).ok;
    const bytes = real === undefined ? undefined : from === place ? bytesOf(host, real) : readOnce(host, real);
    return bytes && isProgram(host, bytes) ? { from, bytes } : undefined;
  };
  for (const from of [...binary === undefined ? [] : [binary], ...dist, place]) {
    const taken = take(from);
    if (taken) return from === place ? undefined : taken;
  }
  const hint =
    `where https://dl.deno.land can be reached: deno task compile; then copy dist/lima-guard-${target} here and ` +
    `run it: lima-guard --install …`;
  if (folder === undefined) throw new Refusal("Cannot find a compiled guard", hint);
  if (options.dryRun) return { from: join(folder, "dist", `lima-guard-${target}`), bytes: undefined };
  const compiled = await host.compile(folder, host.pace.compileMs);
  if (typeof compiled !== "string") throw new Refusal(`Cannot compile the guard here: ${inWords(compiled)}`, hint);
  const taken = take(compiled);
  if (!taken) throw new Refusal("Cannot compile the guard here: what came out is no program", hint);
  return taken;
}

/** What macOS may have granted to limactl and will not grant to the guard by itself. */
function consentNotes(seen: Seen, guard: string): string[] {
  const { place, job, limaHome, user } = seen;
  const personal = ["Desktop", "Documents", "Downloads"].map((folder) => join(user.home, folder));
  const isGuarded = seen.otherVolume || limaHome.startsWith("/Volumes/") || personal.some((f) => isUnder(limaHome, f));
  const full = `macOS judges access to ${limaHome} by the program that launchd starts: ` +
    `System Settings > Privacy & Security > Full Disk Access: add ${guard}`;
  const local =
    `if the guest talks to the local network: System Settings > Privacy & Security > Local Network: allow ${guard}`;
  const isAgent = place.kind === "agent" && !job.label.startsWith(DAEMON_LABEL);
  return [...isGuarded ? [full] : [], ...isAgent ? [local] : []];
}

// ───────────────────────────────────────────────────────────────────────────────────────── acting ──

/** A step that did not do what it is for. */
class Failure extends Error {}

/** What acting needs to know, and what it finds out. */
interface Acting {
  readonly host: InstallHost;
  readonly target: Target;
  readonly done: Step[];
  readonly notes: string[];
  readonly say: (text: string) => void;
  /** The guard's ladder, which still cleans up while launchd is told already. */
  stopping?: Promise<Answer>;
  hasTouchedLaunchd: boolean;
  isInterrupted: boolean;
}

/** Does the steps in order. Whatever goes wrong, the old file and the old job are put back. */
async function act(
  host: InstallHost,
  target: Target,
  steps: readonly Step[],
  say: (text: string) => void,
): Promise<Acting & { failure?: string; isBack?: boolean }> {
  const a: Acting = { host, target, done: [], notes: [], say, hasTouchedLaunchd: false, isInterrupted: false };
  const silence = host.onSignal(() => a.isInterrupted = true);
  try {
    for (const step of steps) {
      if (a.isInterrupted) throw new Failure("interrupted");
      await actStep(a, step);
    }
    return a;
  } catch (error) {
    // A fault of ours must not leave a job half-way either.
    const failure = error instanceof Failure
      ? error.message
      : `a fault of ours: ${error instanceof Error ? error.stack : error}`;
    say(`failed: ${failure}: going back`);
    return { ...a, failure, isBack: await goBack(a) };
  } finally {
    silence();
    await a.stopping;
  }
}

async function actStep(a: Acting, step: Step): Promise<void> {
  // Commands that change something are printed by the runner, just as they are run.
  if (step.argv === undefined) a.say(describeStep(step));
  try {
    const outcome = await doStep(a, step);
    a.done.push({ ...step, outcome: outcome ?? "done" });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    a.done.push({ ...step, outcome: why });
    throw error instanceof Failure ? new Failure(`${step.what}: ${why}`) : error;
  }
}

async function doStep(a: Acting, step: Step): Promise<string | void> {
  switch (step.kind) {
    case "write":
      return writeStep(a.host, step);
    case "rename":
    case "run":
      return await runStep(a, step);
    case "remove":
      return await removeStep(a, step);
    case "handshake":
      return await handshake(a, step);
    case "stop":
      return await stopStep(a, step);
    case "bootout":
      return await bootout(a, step);
    case "wait":
      return await waitUntilGone(a);
    case "bootstrap":
      return await bootstrap(a, step);
    case "verify":
      return await verify(a, step);
    default: {
      const never: never = step.kind;
      throw new Failure(`an unknown step ${never}`);
    }
  }
}

/** Beside the file, and never through what somebody has put there in the meantime. */
function writeStep(host: InstallHost, { path = "", bytes = new Uint8Array(), mode = 0o600, gid = -1 }: Step): void {
  const old = host.lookAt(path);
  if (old?.kind === "directory") throw new Failure("there is a directory");
  if (old) succeed(host.remove(path));
  try {
    host.writeNew(path, bytes, mode, gid);
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    host.remove(path);
    throw new Failure(error.message);
  }
  if (!isEqual(host.bytes(path, bytes.length + 1), bytes)) throw new Failure("it did not get the bytes");
}

async function runStep({ host }: Acting, step: Step): Promise<void> {
  const { argv, path, to, bytes, becomes, what } = step;
  if (argv) {
    const answer = await host.run(argv, {
      limitMs: host.pace.commandMs,
      words: what,
      ...bytes ? { input: bytes } : {},
    });
    if (answer.late || answer.code !== 0) throw new Failure(inWords(answer));
  } else succeed(host.rename(path ?? "", to ?? ""));
  // A command that was killed looks like one that went well: its effect decides.
  if (bytes && !isEqual(bytesOf(host, path ?? ""), bytes)) throw new Failure("it did not get the bytes");
  if (bytes) host.sync(path ?? "");
  if (becomes && to !== undefined) {
    host.sync(dirname(to));
    const look = host.lookAt(to);
    const isRight = look?.kind === "file" && (look.mode & 0o777) === becomes.mode && look.uid === becomes.uid;
    if (!isRight || !isEqual(bytesOf(host, to), becomes.bytes)) throw new Failure(`${to} is not what it should be`);
  }
}

/** A backup that is left over does no harm: no reason to go back. */
async function removeStep({ host }: Acting, { argv, path = "", what }: Step): Promise<string | void> {
  if (!argv) host.remove(path);
  else await host.run(argv, { limitMs: host.pace.commandMs, words: what });
  return host.lookAt(path) ? "it is still there, and does no harm" : undefined;
}

function succeed(tried: { trouble?: unknown; why?: string }): void {
  if (tried.trouble !== undefined) throw new Failure(tried.why ?? "it failed");
}

async function handshake(a: Acting, { argv = [""], user, what }: Step): Promise<string> {
  const { guard, seen } = a.target;
  const judged = judgeWay(wayTo(a.host, guard?.path ?? "/"), seen.user);
  if (judged.trouble !== undefined) throw new Failure(judged.trouble);
  const answer = await a.host.run(argv, { limitMs: a.host.pace.commandMs, words: what });
  const version = versionIn(answer);
  if (version === undefined) {
    throw new Failure(`it did not say its version to ${user}: ${answer.stdout.trim().slice(0, 80) || inWords(answer)}`);
  }
  if (version !== VERSION) a.notes.push(`the guard is version ${version}, this is ${VERSION}`);
  return `lima-guard ${version}`;
}

function versionIn(answer: Answer): string | undefined {
  return answer.code === 0 && !answer.late ? /^lima-guard (\d+\.\d+\.\d+\S*)\n?$/.exec(answer.stdout)?.[1] : undefined;
}

// ─────────────────────────────────────────────────────────────────────────── acting: the way back ──

/** Back to where it was, from what is seen now. Every step is tried, even if one before it failed. */
async function goBack(a: Acting): Promise<boolean> {
  const { host, target } = a;
  const { seen } = target;
  // What the ladder still does belongs to the instance; the job is ours.
  await a.stopping;
  const now = { text: textNow(host, seen.place.target), loaded: a.hasTouchedLaunchd ? await lookHard(a) : seen.loaded };
  const actor = { uid: host.uid, canAsk: host.canAsk };
  let isBack = true;
  for (const step of planBack({ ...target, reload: a.hasTouchedLaunchd }, now, actor)) {
    try {
      await actStep(a, step);
    } catch (error) {
      a.say(`failed on the way back: ${error instanceof Error ? error.message : error}`);
      isBack = false;
    }
  }
  await clearBeside(a);
  return isBack && textNow(host, seen.place.target) === seen.plist.text;
}

/** What was written beside its place and did not get there. It does no harm: no reason to fail. */
async function clearBeside({ host, target }: Acting): Promise<void> {
  const { place } = target.seen;
  const guard = target.guard?.bytes ? [target.guard.path] : [];
  for (const path of [place.target, place.target + BACKUP_SUFFIX, ...guard].map((p) => p + BESIDE_SUFFIX)) {
    const owner = host.lookAt(path)?.uid;
    if (owner === undefined) continue;
    if (owner === host.uid) host.remove(path);
    else if (place.kind === "daemon" || host.uid === 0) {
      const argv = [...prefixFor({ uid: host.uid, canAsk: host.canAsk }, owner, place.kind), "rm", "-f", path];
      const [program = "", ...rest] = argv;
      await host.run([program, ...rest], { limitMs: host.pace.commandMs, words: argv.map(quote).join(" ") });
    }
  }
}

function textNow(host: InstallHost, path: string): string | undefined {
  const bytes = bytesOf(host, path);
  return bytes && new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
}

// ──────────────────────────────────────────────────────────────────────────────── acting: launchd ──

async function loadedNow({ host, target }: Pick<Acting, "host" | "target">): Promise<Loaded> {
  const { domain, job } = target.seen;
  return readLoaded(await host.run(["launchctl", "print", `${domain}/${job.label}`], { limitMs: host.pace.commandMs }));
}

/** Looks until there is an answer: what is not known must not be taken for gone. */
async function lookHard(a: Acting): Promise<Loaded> {
  const { value } = await poll(a, a.host.pace.runningMs, (loaded) => loaded.kind !== "unknown");
  return value;
}

/** How often launchctl is asked at least before it counts as silent. */
const LOOKS = 3;

async function poll(
  a: Acting,
  limitMs: number,
  isEnough: (loaded: Loaded) => boolean,
): Promise<{ isEnough: boolean; value: Loaded }> {
  const end = a.host.clockMs() + limitMs;
  for (let looks = 1;; looks++) {
    const value = await loadedNow(a);
    if (isEnough(value)) return { isEnough: true, value };
    // One launchctl that hangs may use up all the time: that is no reason to give up.
    const isTried = value.kind !== "unknown" || looks >= LOOKS;
    if (isTried && a.host.clockMs() >= end) return { isEnough: false, value };
    await a.host.pause(a.host.pace.pollMs);
  }
}

/** The guard's ladder, until the job's own process has ended: launchd may be starting it again the next moment. */
async function stopStep(a: Acting, { argv = [""], what, pid: planned }: Step): Promise<string> {
  const { host, target } = a;
  a.hasTouchedLaunchd = true;
  // KeepAlive may have started another process since the plan was made.
  const now = await loadedNow(a);
  if (now.kind === "loaded" && now.pid === undefined) return "its process has ended";
  const pid = now.kind === "loaded" ? now.pid : planned;
  const progress = host.progress(`${target.seen.place.name} stops`);
  let ended: Answer | undefined;
  a.stopping = host.run(argv, { limitMs: host.pace.stopMs, words: what }).then((answer) => ended = answer);
  while (ended === undefined && pid !== undefined && host.alive(pid) !== "no") {
    await Promise.race([a.stopping, host.pause(host.pace.pollMs / 5)]);
  }
  progress.finish();
  if (pid === undefined || host.alive(pid) === "no" || ended === undefined) return "its process has ended";
  const { code, late, stdout } = ended as Answer;
  // `colima start -f` does not notice that its instance has stopped; limactl ends with it. A ladder that was killed
  // looks like one that went well, but has said nothing.
  const isStopped = code === 0 && !late && stdout.includes(`${target.seen.place.name}: `);
  if (isStopped && target.seen.job.tool === "colima") return "stopped";
  // The ladder calls a process gone that launchd has yet to reap.
  const end = host.clockMs() + host.pace.reapMs;
  while (isStopped && host.alive(pid) !== "no" && host.clockMs() < end) await host.pause(host.pace.pollMs);
  if (host.alive(pid) === "no") return "its process has ended";
  throw new Failure(isStopped ? `PID ${pid} of the job still lives` : stdout.trim() || inWords(ended));
}

async function bootout(a: Acting, { argv = [""], what }: Step): Promise<string | void> {
  a.hasTouchedLaunchd = true;
  const answer = await a.host.run(argv, { limitMs: a.host.pace.commandMs, words: what });
  if (!answer.late && [0, NO_PROCESS, IN_PROGRESS, NO_SERVICE].includes(answer.code)) return;
  const loaded = await lookHard(a);
  if (loaded.kind === "absent") return "the job is gone";
  if (loaded.kind === "loaded" && loaded.isEnding) return "the job is ending";
  throw new Failure(inWords(answer));
}

async function waitUntilGone(a: Acting): Promise<void> {
  const { loaded } = a.target.seen;
  const inForce = loaded.kind === "loaded" ? loaded.exitTimeoutS ?? EXIT_TIMEOUT_S : EXIT_TIMEOUT_S;
  const pid = loaded.kind === "loaded" ? loaded.pid : undefined;
  const limitMs = a.host.pace.goneMs + inForce * a.host.pace.secondMs;
  const progress = a.host.progress(`waits for launchd, up to ${Math.round(limitMs / 1000)} s`);
  const isGone = (l: Loaded) => l.kind === "absent" && (pid === undefined || a.host.alive(pid) === "no");
  const waited = await poll(a, limitMs, isGone);
  progress.finish();
  if (waited.isEnough) return;
  const { value } = waited;
  throw new Failure(
    value.kind === "unknown" ? value.why : value.kind === "absent" ? `PID ${pid} still lives` : "it is still there",
  );
}

async function bootstrap(a: Acting, { argv = [""], expect, what }: Step): Promise<string | void> {
  a.hasTouchedLaunchd = true;
  const end = a.host.clockMs() + a.host.pace.bootstrapMs;
  for (let tries = 1;; tries++) {
    const answer = await a.host.run(argv, { limitMs: a.host.pace.commandMs, words: what });
    const loaded = await lookHard(a);
    if (isLoadedAs(loaded, expect?.args)) {
      return tries > 1 ? `done, at try ${tries}` : undefined;
    }
    const isTransient = answer.late || [0, IO_ERROR, IN_PROGRESS, ALREADY].includes(answer.code);
    if (!isTransient || a.host.clockMs() >= end) throw new Failure(inWords(answer));
    await a.host.pause(a.host.pace.pollMs);
  }
}

async function verify(a: Acting, { expect }: Step): Promise<string> {
  const isRight = (l: Loaded) =>
    isLoadedAs(l, expect?.args) && (!expect?.isRunning || (l.kind === "loaded" && l.pid !== undefined));
  const progress = a.host.progress("looks at the job");
  const { isEnough, value } = await poll(a, a.host.pace.runningMs, isRight);
  progress.finish();
  if (!isEnough) throw new Failure(notAsWanted(value, expect));
  if (value.kind !== "loaded") return "as wanted";
  const inForce = value.exitTimeoutS;
  if (inForce !== undefined && inForce < (expect?.exitTimeoutS ?? 0)) {
    a.notes.push(`launchd has an exit timeout of ${inForce} s in force, the plist says ${expect?.exitTimeoutS} s`);
  }
  return value.pid === undefined ? "as wanted, not running" : `as wanted, running (PID ${value.pid})`;
}

function notAsWanted(loaded: Loaded, expect: Expected | undefined): string {
  if (loaded.kind === "unknown") return loaded.why;
  if (loaded.kind !== "loaded") return "the job is not loaded";
  if (!isEqual(loaded.args, expect?.args)) return `launchd would run ${loaded.args.map(quote).join(" ")}`;
  return "the job does not run, and it ran before";
}

// ────────────────────────────────────────────────────────────────────────────────────── the roles ──

/** A job that is ready to be changed, or the report where there is nothing to do or to be refused. */
type Prepared = { readonly report: Report } | {
  readonly name: string;
  readonly target: Target;
  readonly steps: readonly Step[];
};

async function prepare(host: InstallHost, name: string, options: Options): Promise<Prepared> {
  try {
    if (host.os !== "darwin" && !(options.plist && (options.noReload || options.dryRun || options.role === "check"))) {
      const hint = "--plist FILE with --no-reload, --dry-run or --check works anywhere";
      throw new Refusal("Cannot do this here: launchd is part of macOS", hint);
    }
    const seen = await observe(host, name, options);
    if (options.role === "check") return { report: await check(host, seen, options) };
    refuseReadOnly(host, seen, options);
    const target = options.role === "install"
      ? await installTarget(host, seen, options)
      : uninstallTarget(host, seen, options);
    const steps = planSteps(target, { uid: host.uid, canAsk: host.canAsk });
    if (steps.every((step) => step.kind === "handshake" || step.argv?.[0] === "codesign")) {
      return { report: nothingToDo(target) };
    }
    return { name, target, steps };
  } catch (error) {
    return { report: refused(name, error) };
  }
}

/** Whatever else is thrown than a refusal is no answer: said, and the other jobs are served all the same. */
function refused(name: string, error: unknown): Report {
  if (!(error instanceof Refusal)) {
    const because = `a fault of ours: ${error instanceof Error ? error.stack : error}`;
    return report(name, "unknown", EXIT.failed, "unknown", { blockers: [{ what: name, because }] });
  }
  const { message, hint, status } = error;
  const state = status === EXIT.noInstance ? "missing" : status === EXIT.tryAgain ? "unknown" : "refused";
  const blocker = { what: name, because: message, ...hint === undefined ? {} : { hint } };
  return report(name, state, status, state, { blockers: [blocker] });
}

async function installTarget(host: InstallHost, seen: Seen, options: Options): Promise<Target> {
  const onMac = host.os === "darwin";
  const path = options.guard ?? join(options.guardDir ?? host.folders.guards, GUARD_NAME);
  const guard = onMac ? await observeGuard(host, seen, options) : undefined;
  const logFolder = seen.place.kind === "daemon" ? host.folders.logs : join(seen.user.home, "Library/Logs/lima-guard");
  const wanted = wantedOf(seen, path, options, logFolder);
  const rewritten = wrapText(seen.plist, seen.job, wanted);
  const job = readJob(readPlist(rewritten.text), seen.place.name);
  const logs = [wanted.stdoutPath, wanted.stderrPath].filter((p) => p !== undefined).filter((p) => !host.lookAt(p));
  const reload = needsReload(host, seen, job, options, rewritten);
  const consent = seen.job.guard === path ? [] : consentNotes(seen, path);
  const keep = options.keepAlive && seen.job.keepAlive !== undefined
    ? ["KeepAlive is there already, and stays as it is"]
    : [];
  const short = wanted.exitTimeoutS !== undefined && wanted.exitTimeoutS < EXIT_TIMEOUT_S
    ? [`an ExitTimeOut of ${wanted.exitTimeoutS} s is less than the ${EXIT_TIMEOUT_S} s that a guest may need`]
    : [];
  const later = seen.loaded.kind === "no session"
    ? ["nobody is logged in at the screen: it takes effect at the next login"]
    : [];
  const volume = seen.otherVolume && seen.place.kind === "daemon"
    ? [
      "it is on another volume: macOS mounts it before a login only with AutomountDisksWithoutUserLogin (see the README)",
    ]
    : [];
  const unchecked = onMac ? [] : [`this is no Mac: ${path} was not looked at`];
  const notes = [
    ...seen.notes,
    ...seen.job.remarks,
    ...guard?.warnings ?? [],
    ...consent,
    ...keep,
    ...short,
    ...later,
    ...volume,
    ...unchecked,
  ];
  const target = {
    role: "install",
    seen: { ...seen, notes },
    rewritten,
    job,
    reload,
    stopWith: path,
    logs,
    onMac,
  } as const;
  return { ...target, ...guard ? { guard } : {} };
}

function uninstallTarget(host: InstallHost, seen: Seen, options: Options): Target {
  const rewritten = unwrapText(seen.plist, seen.job, seen.backup?.plist);
  const job = readJob(readPlist(rewritten.text), seen.place.name);
  const reload = needsReload(host, seen, job, options, rewritten);
  const guard = seen.job.guard ?? (seen.loaded.kind === "loaded" ? seen.loaded.args[0] : undefined);
  const stopWith = guard !== undefined && GUARD_NAME_RULE.test(basename(guard)) && host.lookAt(guard)
    ? { stopWith: guard }
    : {};
  const lost = rewritten.changes.length > 0 && !seen.backup?.plist
    ? ["there is no backup: only the command goes back, ExitTimeOut and the rest stay as they are"]
    : [];
  const notes = [...seen.job.remarks, ...lost];
  return {
    role: "uninstall",
    seen: { ...seen, notes },
    rewritten,
    job,
    reload,
    logs: [],
    onMac: host.os === "darwin",
    ...stopWith,
  };
}

const GUARD_NAME_RULE = /^lima-guard/;

/** Whether launchd has something else than the file will say. What it does not print counts too: it reads a file once. */
function needsReload(host: InstallHost, seen: Seen, job: Job, options: Options, { changes }: Rewritten): boolean {
  const { loaded } = seen;
  if (options.noReload || host.os !== "darwin" || loaded.kind === "no session") return false;
  if (loaded.kind === "unknown") {
    throw new Refusal(
      `Cannot tell what launchd has: ${loaded.why}`,
      "run this again; --no-reload changes the file only",
      EXIT.tryAgain,
    );
  }
  // An uninstall that was cut off between bootout and bootstrap has left the old bytes and the backup.
  if (loaded.kind === "absent") return options.role === "install" || seen.backup?.text === seen.plist.text;
  if (changes.length > 0) return true;
  const wanted = Math.min(job.exitTimeOut ?? 0, EXIT_TIMEOUT_S);
  return loaded.isEnding || !isEqual(loaded.args, job.args) || (loaded.exitTimeoutS ?? wanted) < wanted;
}

/** A file that somebody else writes: what to declare there. */
function refuseReadOnly(host: InstallHost, { place, job, look }: Seen, options: Options): void {
  const isStore = place.target.startsWith("/nix/store/");
  if (isStore || host.isReadOnly(place.target)) {
    const guard = options.guard ?? join(options.guardDir ?? host.folders.guards, GUARD_NAME);
    const args = [guard, "--run", place.name, "--", ...job.command];
    throw new Refusal(
      `Cannot change ${place.target}: ${isStore ? "Nix made it" : "its volume is read-only"}`,
      `declare there: ProgramArguments = ${JSON.stringify(args)}, ExitTimeOut = ${EXIT_TIMEOUT_S}`,
    );
  }
  if (place.kind !== "daemon") return;
  // Whoever can write a daemon's plist is root, as far as launchd is concerned. What group admin may do to the folders
  // of /Library is Apple's decision, and was another one in every decade.
  const judged = judgeWay(wayTo(host, place.file), { uid: 0, name: "root" }, "may");
  const isLoose = look.uid !== 0 || (look.mode & 0o022) !== 0;
  if (isLoose || judged.trouble !== undefined) {
    const hint = judged.hint ?? `sudo chown root:wheel ${quote(place.target)}; sudo chmod 0644 ${quote(place.target)}`;
    throw new Refusal(
      `Cannot take ${place.file}: ${judged.trouble ?? "others than root can write it, and launchd refuses it (122)"}`,
      hint,
    );
  }
}

function nothingToDo({ role, seen, job }: Target): Report {
  const words = role === "install" ? `guarded already: ${job.label} runs ${job.guard}` : `not guarded: nothing to do`;
  return report(seen.place.name, role === "install" ? "guarded" : "not guarded", EXIT.done, words, {
    plist: seen.place.file,
    notes: seen.notes.map((because) => ({ what: job.label, because })),
  });
}

// ─────────────────────────────────────────────────────────────────────────────── the role --check ──

async function check(host: InstallHost, seen: Seen, options: Options): Promise<Report> {
  const { place, job, user } = seen;
  let guard: { trouble?: string; version?: string } | undefined;
  if (job.guard !== undefined && host.os === "darwin") {
    const judged = judgeWay(wayTo(host, job.guard), user);
    // Never as root: the guard is for the job's user, who may be able to write it.
    const prefix = host.uid === 0 ? ["sudo", "-n", "-H", "-u", `#${user.uid}`] : [];
    const [program = "", ...rest] = [...prefix, job.guard, "--version"];
    const isThere = host.realPath(job.guard).ok !== undefined;
    const version = isThere
      ? versionIn(await host.run([program, ...rest], { limitMs: host.pace.commandMs }))
      : undefined;
    if (!isThere) guard = { trouble: `${job.guard} is not there` };
    else if (judged.trouble !== undefined) guard = { trouble: judged.trouble };
    else guard = version === undefined ? { trouble: `${job.guard} does not answer to --version` } : { version };
  }
  const fileOnly = host.os !== "darwin";
  const { troubles, notes, unknown } = judgeCheck(
    fileOnly ? { ...seen, loaded: { kind: "no session" } } : seen,
    guard,
    options,
  );
  const status = troubles.length > 0 ? EXIT.failed : unknown.length > 0 ? EXIT.tryAgain : EXIT.done;
  const state = job.guard === undefined
    ? "not guarded"
    : troubles.length > 0
    ? "broken"
    : unknown.length > 0
    ? "unknown"
    : "guarded";
  const hint = `lima-guard --install ${place.name}`;
  const pid = seen.loaded.kind === "loaded" && seen.loaded.pid !== undefined
    ? `, running (PID ${seen.loaded.pid})`
    : "";
  return report(place.name, state, status, `${state}${troubles.length === 0 ? `: ${job.label}${pid}` : ""}`, {
    plist: place.file,
    blockers: [...troubles, ...unknown].map((because) => ({ what: job.label, because, hint })),
    notes: notes.filter((n) => !fileOnly || !n.startsWith("nobody is logged in")).map((because) => ({
      what: job.label,
      because,
    })),
  });
}

// ─────────────────────────────────────────────────────────────────────────────────── carrying out ──

/** What a dry run reports: the plan, the diff, and the status of a real run that goes well. */
function planned(name: string, target: Target, steps: readonly Step[]): Report {
  const { seen, rewritten } = target;
  return report(name, target.role === "install" ? "not guarded" : "guarded", EXIT.done, `would be changed`, {
    plist: seen.place.file,
    steps: steps.map(({ kind, what, because }) => ({ kind, what, because })),
    changes: rewritten.changes,
    diff: diff(seen.plist.text, rewritten.text),
    notes: seen.notes.map((because) => ({ what: target.job.label, because })),
  });
}

async function carryOut(host: InstallHost, name: string, target: Target, steps: readonly Step[]): Promise<Report> {
  const { seen, role, job, rewritten } = target;
  const begun = host.clockMs();
  const folder = dirname(seen.place.target);
  const lock = host.lock(folder);
  if (!lock) {
    return refused(
      name,
      new Refusal(`Cannot start: another install is at work in ${folder}`, "run this again", EXIT.tryAgain),
    );
  }
  try {
    // What was planned on may have changed while a person read the question.
    if (textNow(host, seen.place.target) !== seen.plist.text) {
      return refused(
        name,
        new Refusal(`Cannot go on: ${seen.place.file} has changed in the meantime`, "run this again", EXIT.tryAgain),
      );
    }
    const now = target.reload ? await loadedNow({ host, target }) : seen.loaded;
    if (!isStillThat(seen.loaded, now)) {
      const why = now.kind === "unknown" ? now.why : `what launchd has of ${job.label} has changed in the meantime`;
      return refused(name, new Refusal(`Cannot go on: ${why}`, "run this again", EXIT.tryAgain));
    }
    const a = await act(host, target, steps, (text) => host.stderr(`lima-guard: ${text}\n`));
    const more = {
      plist: seen.place.file,
      seconds: { total: Math.round(host.clockMs() - begun) / 1000 },
      steps: a.done.map(({ kind, what, because, outcome }) => ({
        kind,
        what,
        because,
        ...outcome === undefined ? {} : { outcome },
      })),
      notes: [...seen.notes, ...a.notes].map((because) => ({ what: job.label, because })),
    };
    if (a.failure === undefined) {
      const state = role === "install" ? "guarded" : "not guarded";
      const verified = a.done.findLast((s) => s.kind === "verify")?.outcome;
      const where = verified ?? (target.reload ? "loaded" : "in the file only");
      return report(name, state, EXIT.done, `${state}: ${job.label}: ${where}`, {
        ...more,
        changes: rewritten.changes,
      });
    }
    const because = a.failure;
    if (a.isBack) {
      const hint = `lima-guard --${role} ${name}, once that is mended`;
      return report(name, "rolled back", EXIT.failed, "rolled back: the old plist and the old job are in place", {
        ...more,
        blockers: [{ what: name, because, hint }],
      });
    }
    const prefix = seen.domain === "system" ? "sudo " : "";
    const hint = `launchctl print ${seen.domain}/${job.label}; ${prefix}launchctl bootstrap ${seen.domain} ${
      quote(seen.place.file)
    }`;
    return report(name, "broken", EXIT.failed, "broken: the way back has failed too", {
      ...more,
      blockers: [{ what: name, because, hint }],
    });
  } finally {
    lock.close();
  }
}

// ────────────────────────────────────────────────────────────────────────────────── the real host ──

/** `env` is added to the environment of every command. */
export interface HostOptions {
  readonly canAsk: boolean;
  readonly isVerbose: boolean;
  readonly env?: Readonly<Record<string, string>>;
  readonly print?: (text: string) => void;
}

/** The machine itself: dax runs the commands, asks and shows progress; it is loaded only here. */
export async function realHost(options: HostOptions): Promise<InstallHost> {
  const { $, CommandBuilder } = await import("npm:dax@0.49.0");
  const guard = guardHost();
  const here = import.meta.dirname;
  const print = options.print ?? guard.stderr;
  const builder = () => new CommandBuilder().env(options.env ?? {});
  return {
    ...guard,
    arch: Deno.build.arch,
    canAsk: options.canAsk,
    pace: PACE,
    folders: {
      daemons: "/Library/LaunchDaemons",
      logs: "/Library/Logs/lima-guard",
      guards: "/usr/local/libexec",
      boot: ["/", "/Library"],
    },
    self: Deno.build.standalone ? { binary: Deno.execPath() } : here === undefined ? {} : { folder: here },
    lookAt,
    linkTarget: (path) => guard.linkTarget(path).ok,
    bytes: readSome,
    writeNew,
    sync,
    isReadOnly: (path) => guard.writeTrouble(path) !== undefined,
    lock,
    run: (argv, o) =>
      runCommand(builder(), argv, options.isVerbose ? { words: argv.map(quote).join(" "), ...o } : o, print),
    confirm: (question) => $.confirm(question, { default: false }),
    progress: (text) => options.canAsk ? $.progress(text) : { finish: () => {} },
    compile: (folder, limitMs) =>
      compile(folder, (argv) => runCommand(builder(), argv, { limitMs, words: argv.map(quote).join(" ") }, print)),
    onSignal: (take) => {
      for (const signal of SIGNALS) Deno.addSignalListener(signal, take);
      return () => SIGNALS.forEach((signal) => Deno.removeSignalListener(signal, take));
    },
  };
}

/** What a person may send in the middle: then the old job is put back before we leave. */
const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

type Builder = InstanceType<typeof import("npm:dax@0.49.0").CommandBuilder>;

/** dax reports a command that a signal has killed as success: whoever calls this looks at the effect. */
async function runCommand(
  builder: Builder,
  argv: readonly [string, ...string[]],
  options: RunOptions,
  print: (text: string) => void,
): Promise<Answer> {
  const asks = argv[0] === "sudo" && argv[1] !== "-n";
  let run = builder.command([...argv]).noThrow().stdout("piped").stderr("piped");
  // Root's own folder, say: another user could not even look where he is.
  if (argv[0] === "sudo") run = run.cwd("/");
  run = options.input ? run.stdin(options.input) : run.stdin(asks ? "inherit" : "null");
  // The words of the plan, and not dax's own quoting.
  run.setPrintCommandLogger(() =>
    print(`$ ${options.words}
`)
  );
  const child = run.printCommand(options.words !== undefined).spawn();
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<undefined>((resolve) =>
    timer = setTimeout(() => resolve(undefined), asks ? options.limitMs + 60_000 : options.limitMs)
  );
  const ended = child.then((result) => result, (error) => ({ code: 127, stdout: "", stderr: String(error) }));
  const result = await Promise.race([ended, late]);
  clearTimeout(timer);
  if (result) return { argv, code: result.code, stdout: result.stdout, stderr: result.stderr, late: false };
  try {
    child.kill("SIGKILL");
  } catch (error) {
    // Root's processes cannot be killed by us; what they did is looked at all the same.
    if (!(error instanceof Error)) throw error;
  }
  return { argv, code: -1, stdout: "", stderr: "", late: true };
}

// ─────────────────────────────────────────────────────────────────────────── the real host: files ──

function lookAt(path: string): FileLook | undefined {
  try {
    const info = Deno.lstatSync(path);
    const kind = info.isSymlink ? "link" : info.isFile ? "file" : info.isDirectory ? "directory" : "other";
    return {
      path,
      kind,
      uid: info.uid ?? -1,
      gid: info.gid ?? -1,
      mode: (info.mode ?? 0) & 0o7777,
      dev: info.dev,
      size: info.size,
    };
  } catch (error) {
    // What cannot be seen is not there for us; reading it says why.
    if (error instanceof Deno.errors.NotFound || error instanceof Deno.errors.PermissionDenied) return undefined;
    if (error instanceof Error && "code" in error && error.code === "ENOTDIR") return undefined;
    throw error;
  }
}

function readSome(path: string, most: number): Uint8Array | undefined {
  try {
    using file = Deno.openSync(path);
    const bytes = new Uint8Array(Math.min(most, file.statSync().size + 1));
    let filled = 0;
    for (let n: number | null; filled < bytes.length && (n = file.readSync(bytes.subarray(filled))) !== null;) {
      filled += n;
    }
    return bytes.subarray(0, filled);
  } catch (error) {
    if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
    return undefined;
  }
}

function writeNew(path: string, bytes: Uint8Array, mode: number, gid: number): void {
  // createNew is O_EXCL: a link that somebody has put there is not followed.
  using file = Deno.openSync(path, { write: true, createNew: true, mode: 0o600 });
  for (let sent = 0; sent < bytes.length;) sent += file.writeSync(bytes.subarray(sent));
  if (Deno.lstatSync(path).gid !== gid && gid >= 0) {
    try {
      Deno.chownSync(path, null, gid);
    } catch (error) {
      // A group that we are not in: launchd asks for the owner and the mode, not for the group.
      if (!(error instanceof Deno.errors.PermissionDenied)) throw error;
    }
  }
  Deno.chmodSync(path, mode);
  file.syncSync();
}

function sync(path: string): void {
  try {
    using file = Deno.openSync(path);
    file.syncSync();
  } catch (error) {
    // A folder that we may not read: its owner's command has written there, and the system will.
    if (!(error instanceof Error)) throw error;
  }
}

function lock(folder: string): { close(): void } | undefined {
  let file: Deno.FsFile;
  try {
    file = Deno.openSync(folder);
  } catch (error) {
    if (error instanceof Deno.errors.PermissionDenied) return { close: () => {} };
    throw error;
  }
  if (file.tryLockSync(true)) return { close: () => file.close() };
  file.close();
  return undefined;
}

/** What a compiled guard may do, and that it never asks: the reasons are in tools/compile.ts, which bakes in the same. */
export const BAKED_IN: readonly string[] = [
  "--no-prompt",
  ...["read", "write", "net", "env", "run", "sys=uid,osUptime"].map((permission) => `--allow-${permission}`),
];

/** `deno task compile` in small: this machine's target only. It downloads Deno's runtime the first time. */
async function compile(
  folder: string,
  run: (argv: [string, ...string[]]) => Promise<Answer>,
): Promise<string | Answer> {
  const output = join(folder, "dist", `${GUARD_NAME}-${Deno.build.target}`);
  const answer = await run([
    Deno.execPath(),
    "compile",
    "--quiet",
    ...BAKED_IN,
    "--output",
    output,
    join(folder, "lima_guard.ts"),
  ]);
  return answer.code === 0 && !answer.late ? output : answer;
}

// ─────────────────────────────────────────────────────────────────────────────────── command line ──

/** Every option there is, in the order of the help text. */
export const INSTALL_OPTIONS = [
  { flag: "install", text: "let launchd run the guard (this is the default)" },
  { flag: "check", text: "is it so, in the file and as loaded? 1 where it is not" },
  { flag: "uninstall", text: "give the old plist back" },
  { flag: "all", text: "every Lima job that is found" },
  { flag: "plist", argument: "FILE", text: "this plist; also for a Colima job (INSTANCE is colima or colima-PROFILE)" },
  { flag: "guard", argument: "PATH", text: "use this compiled guard where it stands" },
  { flag: "guard-dir", argument: "DIR", text: "where the guard is put (default: /usr/local/libexec)" },
  { flag: "sign", argument: "IDENTITY", text: "sign the guard that is put there (codesign --sign)" },
  { flag: "keep-alive", text: "add KeepAlive {SuccessfulExit: false} where there is no KeepAlive" },
  {
    flag: "exit-timeout",
    argument: "SECONDS",
    text: `set ExitTimeOut to just this (default: at least ${EXIT_TIMEOUT_S})`,
  },
  { flag: "lima-home", argument: "DIR", text: "where the instance is (default: what the plist says)" },
  { flag: "no-reload", text: "change the file only; it counts from the next boot or login on" },
  { flag: "dry-run", text: "print the changes and the commands, write nothing" },
  { flag: "yes", text: "do not ask" },
  { flag: "json", text: "one JSON document on stdout" },
  { flag: "verbose", short: "v", text: "print every command, those that only look too" },
  { flag: "help", short: "h", text: "print this and exit" },
  { flag: "version", text: "print the version and exit" },
] as const;

/** What the command line asks for. */
export interface Options {
  readonly role: "install" | "check" | "uninstall";
  readonly names: readonly string[];
  readonly all: boolean;
  readonly plist?: string;
  readonly guard?: string;
  readonly guardDir?: string;
  readonly sign?: string;
  readonly keepAlive: boolean;
  readonly exitTimeoutS?: number;
  readonly limaHome?: string;
  readonly noReload: boolean;
  readonly dryRun: boolean;
  readonly yes: boolean;
  readonly json: boolean;
  readonly verbose: boolean;
}

/** The text of `--help`. */
export function helpText(): string {
  const rows = INSTALL_OPTIONS.map((o) => {
    const flag = `${"short" in o ? `-${o.short}, ` : ""}--${o.flag}${"argument" in o ? ` ${o.argument}` : ""}`;
    return `  ${flag.padEnd(24)}  ${o.text}`;
  });
  return `lima-guard ${VERSION}: let launchd run the guard instead of limactl

usage: lima-guard --install INSTANCE… | --all
       lima-guard --check INSTANCE… | --all
       lima-guard --uninstall INSTANCE… | --all
       deno run -P install.ts [--check | --uninstall] INSTANCE…

${rows.join("\n")}

Exit statuses: 0 done, or nothing to do; 1 refused, rolled back, or (--check) not guarded; 64 usage;
66 no plist; 75 could not find out: try again; 77 not permitted.

Under the hood: plutil -lint · launchctl print, print-disabled, bootout, enable, bootstrap, kickstart ·
codesign --verify · lima-guard --version, --stop · for a daemon, where this is not root: sudo, one command at a time

Try: lima-guard --install --dry-run default
`;
}

const LITERAL = "\0";

/** Reads the arguments: what to do, a text to print, or what is wrong with them. Touches nothing. */
export function parseInstallArgs(args: readonly string[]): Options | { print: string } | { usage: string } {
  const valued: string[] = INSTALL_OPTIONS.flatMap((o) => "argument" in o ? [o.flag] : []);
  const switches: string[] = INSTALL_OPTIONS.flatMap((o) => "argument" in o ? [] : [o.flag]);
  const isValued = (a: string | undefined) => a !== undefined && valued.includes(a.slice(2)) && a.startsWith("--");
  const known = new RegExp(`^(--(${switches.join("|")})|-[vh]+|--(${valued.join("|")})(=.*)?)$`, "s");
  // `-` is a value (codesign's word for "ad hoc"), though it looks like a flag.
  const joined = args.flatMap((a, i) =>
    a === "-" && isValued(args[i - 1]) ? [] : isValued(a) && args[i + 1] === "-" ? [`${a}=-`] : [a]
  );
  const unknown = joined.find((a) => a.startsWith("-") && !known.test(a));
  if (unknown !== undefined) return { usage: `Cannot understand ${JSON.stringify(unknown)}` };
  const parsed: Record<string, unknown> & { _: unknown[] } = parseArgs(
    joined.map((a) => /^(true|false)$/.test(a) ? `${LITERAL}${a}` : a),
    { boolean: switches, string: ["_", ...valued], alias: { v: "verbose", h: "help" } },
  );
  if (parsed["help"]) return { print: helpText() };
  if (parsed["version"]) return { print: `lima-guard ${VERSION}\n` };
  const roles = (["install", "check", "uninstall"] as const).filter((role) => parsed[role]);
  if (roles.length > 1) return { usage: `Cannot do --${roles.join(" and --")} at once` };
  const text = (flag: string) => parsed[flag] === undefined ? undefined : String(parsed[flag]).replace(LITERAL, "");
  const folder = (flag: string) => text(flag)?.replace(/(?<=.)\/+$/, "");
  const empty = valued.find((flag) => text(flag) === "");
  if (empty !== undefined) return { usage: `--${empty} needs a value` };
  const timeout = text("exit-timeout");
  if (timeout !== undefined && !(/^\d{1,4}$/.test(timeout) && Number(timeout) > 0 && Number(timeout) <= 3600)) {
    return {
      usage: `Cannot take ${JSON.stringify(timeout)} as --exit-timeout: it is a whole number of seconds, 1 to 3600`,
    };
  }
  const names = [...new Set(parsed._.map((name) => String(name).replace(LITERAL, "")))];
  const optional = {
    plist: text("plist"),
    guard: text("guard"),
    guardDir: folder("guard-dir"),
    sign: text("sign"),
    limaHome: folder("lima-home"),
    exitTimeoutS: timeout === undefined ? undefined : Number(timeout),
  };
  const flag = (name: string) => parsed[name] === true;
  const options: Options = {
    role: roles[0] ?? "install",
    names,
    all: flag("all"),
    keepAlive: flag("keep-alive"),
    noReload: flag("no-reload"),
    dryRun: flag("dry-run"),
    yes: flag("yes"),
    json: flag("json"),
    verbose: flag("verbose"),
    ...Object.fromEntries(Object.entries(optional).filter(([, v]) => v !== undefined)),
  };
  const usage = misuse(options);
  return usage === undefined ? options : { usage };
}

function misuse(o: Options): string | undefined {
  if (o.all && o.names.length > 0) return "Cannot take --all and instance names at once";
  if (!o.all && o.names.length === 0) return "No instance is named";
  if (o.plist !== undefined && (o.all || o.names.length !== 1)) return "--plist goes with just one instance";
  if (o.guard !== undefined && (o.guardDir !== undefined || o.sign !== undefined)) {
    return "--guard is used where it stands: --guard-dir and --sign do not go with it";
  }
  const bad = o.names.find((name) => nameTrouble(name) !== undefined);
  if (bad !== undefined) return `Cannot take ${JSON.stringify(bad)} as instance name: ${nameTrouble(bad)}`;
  const relative = [o.guard, o.guardDir, o.limaHome].find((path) => path !== undefined && !path.startsWith("/"));
  return relative === undefined ? undefined : `Cannot take ${JSON.stringify(relative)}: launchd wants absolute paths`;
}

// ─────────────────────────────────────────────────────────────────────────────────────────── main ──

/** Installs, checks or uninstalls, as the arguments say. Returns the exit status. */
export async function installMain(args: readonly string[], given?: InstallHost): Promise<number> {
  const options = parseInstallArgs(args);
  const plain = given ?? guardHost();
  if ("print" in options) {
    plain.stdout(options.print);
    return EXIT.done;
  }
  if ("usage" in options) {
    plain.stderr(`lima-guard: ${options.usage} (hint: lima-guard --install --help)\n`);
    return EXIT.usage;
  }
  const host = given ?? await realHost({ canAsk: guardHost().isTerminal && !options.json, isVerbose: options.verbose });
  const names = options.all ? namesOrRefusal(host) : options.names;
  if (names instanceof Refusal) {
    host.stderr(`lima-guard: ${names.message} (hint: ${names.hint})\n`);
    return names.status;
  }
  const prepared: Prepared[] = [];
  for (const name of names) prepared.push(await prepare(host, name, options));
  const mayAct = options.dryRun || options.yes || await ask(host, prepared);
  const reports: Report[] = [];
  for (const ready of prepared) {
    if ("report" in ready) reports.push(ready.report);
    else if (options.dryRun) reports.push(planned(ready.name, ready.target, ready.steps));
    else if (mayAct === true) {
      const done = carryOut(host, ready.name, ready.target, ready.steps);
      reports.push(await done.catch((error: unknown) => refused(ready.name, error)));
    } else {reports.push(
        refused(ready.name, mayAct === false ? new Refusal("Nothing was changed: the answer was no") : mayAct),
      );}
  }
  const document = reports.map(({ summary: _, diff: __, ...fields }) => fields);
  host.stdout(
    options.json
      ? `${JSON.stringify({ version: 1, role: options.role, instances: document }, null, 2)}\n`
      : tellReports(reports, options.dryRun),
  );
  return worst(reports.map((r) => r.status));
}

function namesOrRefusal(host: InstallHost): string[] | Refusal {
  try {
    return allNames(host);
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
}

/** The one question. Nobody there to be asked is no yes: a job must not be stopped by accident. */
async function ask(host: InstallHost, prepared: readonly Prepared[]): Promise<boolean | Refusal> {
  const ready = prepared.filter((p) => "steps" in p);
  if (ready.length === 0) return true;
  if (!host.canAsk) return new Refusal("Nothing was changed: there is nobody to ask", "--yes");
  for (const { name, target, steps } of ready) host.stderr(tellReports([planned(name, target, steps)], true));
  const stops = ready.filter(({ steps }) => steps.some((s) => s.kind === "stop" || s.kind === "bootout"));
  const words = stops.length === 0 ? "" : ` This stops ${stops.map((r) => r.name).join(", ")} and starts it again.`;
  return await host.confirm(`Go on?${words}`);
}

/** The permissions that are missing and cannot be asked for. */
async function missingPermissions(): Promise<string[]> {
  const missing: string[] = [];
  for (const name of ["read", "write", "env", "run", "sys", "net"] as const) {
    const { state } = Deno.stdin.isTerminal()
      ? await Deno.permissions.request({ name })
      : await Deno.permissions.query({ name });
    const isPartly = state === "granted" ||
      (name === "sys" && (await Deno.permissions.query({ name, kind: "uid" })).state === "granted");
    if (!isPartly) missing.push(name);
  }
  return missing;
}

if (import.meta.main) {
  // A fault of ours must not leave a job half-way: said, and survived.
  for (const kind of ["error", "unhandledrejection"] as const) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      const cause = "reason" in event ? event.reason : (event as ErrorEvent).error;
      guardHost().stderr(`lima-guard: a fault of its own: ${cause?.stack ?? cause}\n`);
    });
  }
  const missing = await missingPermissions();
  const words = `lima-guard: Cannot start without permission for ${
    missing.join(", ")
  } (hint: deno run -P install.ts …)\n`;
  if (missing.length > 0) Deno.stderr.writeSync(new TextEncoder().encode(words));
  Deno.exit(missing.length > 0 ? EXIT.denied : await installMain(Deno.args));
}

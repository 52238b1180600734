#!/usr/bin/env -S deno run -P
// deno-lint-ignore-file no-import-prefix -- one file that runs alone needs its versions inline
/**
 * Lets launchd run lima-guard instead of limactl: rewrites the plist of a launchd job, and undoes it.
 *
 *   lima-guard --install INSTANCE      rewrite the job's plist and load it again
 *   lima-guard --check INSTANCE        is the job, in its file and as loaded, run by lima-guard, and will it start?
 *   lima-guard --uninstall INSTANCE    the plist as it was before
 *   deno run -P install.ts [--check | --uninstall] INSTANCE      the same from a checkout
 *
 * The loop of lima_guard.ts in small: look (the plist, the guard, launchd), plan (pure: facts in, steps with reasons
 * out), act (one step after the other, its effect looked at). `--dry-run` prints the plan and leaves.
 *
 * Four rules:
 *   1. One process, one identity. A daemon's job is changed only by root, an agent's only by its owner. Another caller
 *      hands the whole command over once. What is the user's is done by one child that is that user.
 *   2. Root writes only in folders that only root can change, judged component by component.
 *   3. At no moment is there no plist, and every failing step puts the old guard, file and job back, each only where
 *      our own text is still in place.
 *   4. Every byte that need not change stays. What is not understood in full is refused, with what to do about it.
 *
 * Exit statuses: 0 done, or nothing to do · 1 refused, rolled back, or (--check) not guarded · 64 usage · 66 no plist ·
 * 75 could not find out: try again · 77 not permitted.
 *
 * Part I decides: names, numbers and facts · the text of a plist · the job in a plist · the new text · who can change what
 * · the plan and the check · words. Part II looks and acts: the host · looking · acting · the commands. Part III, the
 * edges: the real host, the command line, main.
 *
 * Exports exist for lima_guard.ts (`installMain`) and for the tests.
 * @module
 */

import * as fs from "node:fs";
import { basename } from "jsr:@std/path@1.1.4/posix/basename";
import { dirname } from "jsr:@std/path@1.1.4/posix/dirname";
import { join } from "jsr:@std/path@1.1.4/posix/join";
import {
  COLIMA_VALUES,
  commandLine,
  /** What a stop needs, and the most that launchd grants agents on macOS 26 and later. */
  DEFAULT_BUDGET_S as EXIT_TIMEOUT_S,
  EXIT,
  expandHome,
  type Host,
  instanceOfColima,
  LAUNCHD_DEFAULT_S,
  nameTrouble,
  optionOf,
  quote,
  readJournal,
  readPrint,
  realHost,
  VERSION,
  worst,
} from "./lima_guard.ts";

// ────────────────────────────────────────────────────────────────────── names, numbers and facts ──

/** The folder of login agents, in root's Library and in every user's. */
const AGENTS = "LaunchAgents";
/** Lima's labels (`pkg/autostart/launchd`); the file is the label and `.plist`. */
const DAEMON_LABEL = "io.lima-vm.daemon.";
const AGENT_LABEL = "io.lima-vm.autostart.";

/** Beside the plist. Never a name that ends in `.plist`: launchd reads every one of them in its folders. */
export const BACKUP_SUFFIX = ".before-lima-guard";
/** What the last install was asked for, and which job it has booted out: survives a plist that Lima writes again. */
export const MEMORY_SUFFIX = ".lima-guard.json";
/** Files that are not in place yet: this and eight random digits; alone it is a private folder. */
const TEMPORARY_SUFFIX = ".lima-guard-new-";
/** In /var/log, or in the user's Library/Logs: a line for each job that a run has changed. */
export const LOG_NAME = "lima-guard-install.log";
const GUARD_NAME = "lima-guard";
const PREVIOUS_SUFFIX = ".previous";
const LITTER = /\.lima-guard-new-[\da-f]{8}$/;

/** Lima's plists have 800 bytes; 10 MB of them are an attack, or a mistake. */
export const PLIST_LIMIT_BYTES = 1024 * 1024;
/** A launchd plist nests four deep. */
const DEPTH_LIMIT = 32;
/** A compiled guard has some 90 MB; what has more is something else. */
const GUARD_LIMIT_BYTES = 512 * 1024 * 1024;
/** So much of a journal has the last start of an instance, whose lines have some 200 bytes. */
const JOURNAL_TAIL_BYTES = 65_536;

const GUARD_MODE = 0o755;
/** The groups of macOS whose members may become root anyway. */
const ADMIN_GID = 80;
const WHEEL_GID = 0;
/** Emptied at boot, or by a timer: what lies there is gone when it is needed. */
const EMPTIED = ["/tmp", "/private/tmp", "/private/var/folders", "/var/folders", "/private/var/run", "/var/run"];
/** Another name of the boot volume, which no link leads to. */
const DATA_VOLUME = /^\/System\/Volumes\/Data(?=\/)/;

/** launchctl's codes that mean something to us (`launchctl error N`). */
const NO_PROCESS = 3;
const IO_ERROR = 5;
const IN_PROGRESS = 36;
const ALREADY = 37;
const NO_SERVICE = 113;
/** What a job ends with that launchd could not start: its program, working folder or log cannot be had. */
const EX_CONFIG = 78;
/** No such domain, and a domain that does not do this: no user is logged in there. */
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
  125: "the domain does not do this: no user is logged in at the screen",
  127: "the command was not found",
  134: "the job cannot be loaded in this session",
  139: "launchd has put the job aside after it could not be started",
  150: "not permitted while System Integrity Protection is on",
  155: "the program is quarantined",
  161: "switched off in System Settings > General > Login Items & Extensions",
};

/** Apple's tools by absolute path: what the PATH says must never decide what root runs. */
export const TOOL_PATHS = {
  codesign: "/usr/bin/codesign",
  head: "/usr/bin/head",
  id: "/usr/bin/id",
  launchctl: "/bin/launchctl",
  ls: "/bin/ls",
  mkdir: "/bin/mkdir",
  plutil: "/usr/bin/plutil",
  rm: "/bin/rm",
  rmdir: "/bin/rmdir",
  sudo: "/usr/bin/sudo",
  sysctl: "/usr/sbin/sysctl",
  tail: "/usr/bin/tail",
  test: "/bin/test",
  xattr: "/usr/bin/xattr",
} as const;
type Tool = keyof typeof TOOL_PATHS;

/** The PATH of every process that changes something. */
const OWN_PATH = "/usr/bin:/bin:/usr/sbin:/sbin";

/** How long things may take, in milliseconds. launchctl can block while launchd is busy; tests shorten all of them. */
export const INSTALL_LIMITS = {
  commandMs: 10_000,
  /** macOS scans a new program of 90 MB at its first start. */
  handshakeMs: 60_000,
  /** The guard's stop: its time limit, a lock that it waits for, its clean-up. */
  stopMs: 180_000,
  /** Until launchd has noticed that a process has ended. */
  reapMs: 5_000,
  /** From bootout until the job is gone, beyond the exit timeout in force. */
  goneMs: 15_000,
  secondMs: 1000,
  /** bootstrap is tried again so long while launchd says that the old job is still there. */
  bootstrapMs: 30_000,
  runningMs: 15_000,
  /** What ends at once launchd starts again and again: a process has to run so long, or for three starts, up to 5 × this. */
  steadyMs: 3_000,
  pollMs: 250,
  compileMs: 600_000,
};

/** Shows a plist, or what is wrong with it. */
const plutil = (flag: "-p" | "-lint") => (plist: string) => `plutil ${flag} ${quote(plist)}`;

/** A refusal: the reason, what to do about it, and the exit status. Nothing has been touched when it is thrown. */
export class Refusal extends Error {
  readonly hint: string | undefined;

  /** What reads the text of a plist does not know its name: who catches the refusal gives it. */
  constructor(
    reason: string,
    readonly advice?: string | ReturnType<typeof plutil>,
    readonly status: number = EXIT.failed,
  ) {
    super(reason);
    this.hint = this.hintFor("FILE");
  }

  hintFor(plist: string): string | undefined {
    return typeof this.advice === "function" ? this.advice(plist) : this.advice;
  }
}

type Value = string | number | boolean | Date | Uint8Array | Value[] | Dict;
type Dict = { [key: string]: Value };

/** An element of the XML text, and where it is. */
interface PlistNode {
  readonly tag: string;
  readonly start: number;
  end: number;
  readonly innerStart: number;
  readonly isEmptyTag: boolean;
  text: string;
  /** The elements in it; in a dict keys and values in turn. */
  readonly children: PlistNode[];
}

export type PlistReader = (text: string) => unknown;
type Starter = "limactl" | "colima";

/** A file or folder, links not followed. `mode` has the sticky bit too. */
export interface FileLook {
  readonly path: string;
  readonly kind: "file" | "directory" | "link" | "other";
  /** Where a link points. */
  readonly target?: string;
  readonly uid: number;
  readonly gid: number;
  readonly mode: number;
  readonly dev: number;
  readonly ino: number;
  readonly size: number;
}

/** `denied`: a folder above does not let us look. */
type Looked = FileLook | "absent" | "denied";

function isThere(look: Looked): look is FileLook {
  return typeof look === "object";
}

/** What launchd has of a job. `unknown`: launchctl did not answer, or not in words that we can read. */
type Loaded =
  | Pick<ReturnType<typeof readPrint>, "path" | "pid" | "exitTimeoutS"> & {
    readonly kind: "loaded";
    readonly args: readonly string[];
    /** Undefined where launchd does not say. */
    readonly environment: Readonly<Record<string, string>> | undefined;
    /** What the login or the system gives to every job of it: `launchctl setenv`. */
    readonly inherited: Readonly<Record<string, string>>;
    readonly userName: string | undefined;
    /** After bootout, until its process is gone. */
    readonly isEnding: boolean;
    readonly lastExit: number | undefined;
    /** It was loaded with RunAtLoad or KeepAlive, as far as launchd says so. */
    readonly startsByItself: boolean;
  }
  | { readonly kind: "absent" }
  | { readonly kind: "no session" }
  | { readonly kind: "not asked" }
  | { readonly kind: "unknown"; readonly why: string };

/** A job's plist: `file` as it is called, `target` where a link leads. `file` kind: launchd does not read it there. */
interface JobPlace {
  readonly name: string;
  readonly kind: "daemon" | "agent" | "file";
  readonly file: string;
  readonly target: string;
  /** What the names of our own files begin with. It is the target, except where the plist is gone and only they are left. */
  readonly beside: string;
  /** Who must change it: root for a daemon, the owner of the home for an agent, else its own. */
  readonly changer: number;
  /** Plists that may not be read, and may start the instance too. */
  readonly unread: readonly string[];
  /** Of several the one that is this user's: another user has to name it. */
  readonly isChosen: boolean;
}

/** All about a job, before anything is decided. */
interface JobFacts {
  readonly place: JobPlace;
  readonly look: FileLook;
  /** What has the name that launchd reads: the plist, or a link and where it leads. */
  readonly named: Looked;
  readonly bytes: Uint8Array;
  readonly plist: Plist;
  readonly job: LaunchdJob;
  readonly user: User;
  readonly backup: { readonly bytes: Uint8Array; readonly plist: Plist; readonly look: FileLook } | undefined;
  /** Another user could change the plist: said by a check of what is not root's, else refused. */
  readonly fileTrouble: { readonly why: string; readonly hint: string | undefined } | undefined;
  /** A backup that is there and cannot be believed: why. */
  readonly badBackup: string | undefined;
  readonly memory: Memory;
  readonly limaHome: string;
  /** The one of the job that is loaded. */
  readonly loadedHome: string;
  readonly writesLimaHome: boolean;
  readonly otherVolume: boolean;
  /** What launchd opens for the job before it starts it, and is on a volume that may not be mounted then. */
  readonly away: readonly string[];
  readonly instance: "there" | "gone" | "volume missing" | "hidden";
  readonly domain: string;
  readonly loaded: Loaded;
  readonly domains: readonly string[];
  readonly disabled: boolean | undefined;
  /** A run that was killed has booted it out in this boot: that is not off. */
  readonly isBootedOut: boolean;
  /** A run that was killed has left it enabled: it counts as disabled, and is to be so again. */
  readonly isLeftEnabled: boolean;
  readonly notes: readonly string[];
}

/** The guard that the job is to run, and how it gets there. */
interface GuardFacts {
  readonly path: string;
  /** The bytes to put there; undefined where it is in place already. */
  readonly bytes: Uint8Array | undefined;
  /** The version that will be in place, as far as known, and the one that is now. */
  readonly version: string | undefined;
  readonly previous: string | undefined;
  readonly missing: readonly string[];
  readonly isPlaced: boolean;
  readonly warnings: readonly string[];
  /** With this identity it is signed before it is put there; `-`: ad hoc. */
  readonly sign: string | undefined;
  readonly isSigned: boolean;
}

/** The answer of a command. `late`: it was ended at its limit, with -1 as code, and what it did is not known. */
export interface Answer {
  readonly argv: readonly string[];
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
  readonly late: boolean;
}

// ──────────────────────────────────────────────────────────────────────────── the text of a plist ──

const LEAVES = ["key", "string", "integer", "real", "date", "data", "true", "false"];
const ELEMENTS = ["plist", "dict", "array", ...LEAVES];
/** Sticky, without nested repetition of the same characters: a hostile text costs no more than its length. */
const TAG = /<(\/?)([A-Za-z][\w.-]*)((?:\s+[\w:.-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'))*)\s*(\/?)>/y;
const DOCTYPE =
  /<!DOCTYPE\s+plist(?:\s+PUBLIC\s+"-\/\/Apple(?: Computer)?\/\/DTD PLIST 1\.0\/\/EN"\s+"(?:https?:\/\/www\.apple\.com\/DTDs\/PropertyList-1\.0\.dtd|file:\/\/localhost\/System\/Library\/DTDs\/PropertyList\.dtd)")?\s*>/y;
const DECLARATION =
  /^<\?xml\s+version\s*=\s*["']1\.[01]["'](?:\s+encoding\s*=\s*["']([A-Za-z][\w.-]*)["'])?(?:\s+standalone\s*=\s*["'](?:yes|no)["'])?\s*\?>$/;

/**
 * Reads the XML of a plist into elements with their places. Refuses whatever Apple's reader refuses, and all that could
 * cost more than its length: an internal DTD, entities beyond XML's five, depth.
 */
function readXml(text: string): PlistNode {
  const open: PlistNode[] = [];
  let root: PlistNode | undefined;
  for (let at = text.startsWith("\uFEFF") ? 1 : 0; at < text.length;) {
    const isTag = text.startsWith("<", at) && !/^<[!?]/.test(text.slice(at, at + 2));
    at = isTag ? takeTag(text, at, open, root !== undefined) : takeOther(text, at, open.at(-1), root);
    root ??= open[0];
  }
  if (open.length > 0) {
    throw parseError(text, text.length, `<${open.at(-1)?.tag}> is never closed: the file is cut short`);
  }
  if (!root) throw parseError(text, 0, "there is no <plist>");
  return root;
}

/** Text, a comment, a CDATA section, an instruction or the DOCTYPE; returns where it ends. */
function takeOther(text: string, at: number, parent: PlistNode | undefined, root: PlistNode | undefined): number {
  if (text[at] !== "<") {
    const next = text.indexOf("<", at);
    const end = next < 0 ? text.length : next;
    takeText(text.slice(at, end), parent, at, text);
    return end;
  }
  if (text.startsWith("<!--", at)) return indexAfter(text, "-->", at + 4, "a comment");
  if (text.startsWith("<![CDATA[", at)) {
    const end = indexAfter(text, "]]>", at + 9, "a CDATA section");
    if (parent?.tag !== "string") throw parseError(text, at, "a CDATA section is outside of a string");
    refuseControls(text.slice(at + 9, end - 3), at, text);
    return end;
  }
  if (text.startsWith("<?", at)) {
    const end = indexAfter(text, "?>", at + 2, "a processing instruction");
    if (parent) throw parseError(text, at, "there is a processing instruction in it", "remove it");
    refuseEncoding(text.slice(at, end), at, text);
    return end;
  }
  DOCTYPE.lastIndex = at;
  const found = DOCTYPE.exec(text);
  if (found && !root && !parent) return at + found[0].length;
  const why = "it has declarations of its own (DTD, entities)";
  throw parseError(text, at, why, "remove them: a launchd plist needs none");
}

/** Opens an element, or closes the last one; returns where the tag ends. */
function takeTag(text: string, at: number, open: PlistNode[], hasRoot: boolean): number {
  TAG.lastIndex = at;
  const found = TAG.exec(text);
  if (!found) {
    const isLima = text.startsWith("<no value>", at);
    if (isLima) throw parseError(text, at, "Lima's template left `<no value>` in it", "limactl autostart enable again");
    throw parseError(text, at, `this is no tag: ${JSON.stringify(text.slice(at, at + 20))}`);
  }
  const [whole, slash, tag = "", attributes, empty] = found;
  const end = at + whole.length;
  const parent = open.at(-1);
  if (slash) {
    const node = open.pop();
    if (node?.tag !== tag || attributes || empty) throw parseError(text, at, `</${tag}> does not close <${node?.tag}>`);
    node.end = end;
    refuseValue(node, text);
    return end;
  }
  if (!ELEMENTS.includes(tag)) throw parseError(text, at, `<${tag}> is no element of a plist`);
  if (attributes && tag !== "plist") throw parseError(text, at, `<${tag}> has an attribute`, "remove it");
  const isRoot = tag === "plist" && !hasRoot;
  if (parent ? !mayHold(parent, tag) : !isRoot) throw parseError(text, at, `<${tag}> cannot be here`);
  if (isRoot && empty) throw parseError(text, at, "its root is no dict");
  if (open.length >= DEPTH_LIMIT) throw parseError(text, at, `it nests deeper than ${DEPTH_LIMIT} elements`);
  const node = { tag, start: at, end, innerStart: end, isEmptyTag: empty !== "", text: "", children: [] };
  parent?.children.push(node);
  if (empty) refuseValue(node, text);
  else open.push(node);
  return end;
}

/** A dict holds keys and values in turn, a plist one value, a leaf nothing. */
function mayHold(parent: PlistNode, tag: string): boolean {
  const n = parent.children.length;
  if (tag === "plist") return false;
  if (parent.tag === "plist") return n === 0 && tag !== "key";
  if (parent.tag === "dict") return (n % 2 === 0) === (tag === "key");
  return parent.tag === "array" && tag !== "key";
}

const isBase64 = (text: string) => text.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(text);

/** What the package would read as another value than Apple's reader, without a word. */
const VALUES: Readonly<Record<string, readonly [isValid: (value: string) => boolean, why: (raw: string) => string]>> = {
  integer: [(v) => /^[+-]?\d+$/.test(v) && Number.isSafeInteger(Number(v)), (raw) => `${raw} is no integer`],
  real: [(v) => /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(v), (raw) => `${raw} is no number`],
  true: [(v) => v === "", () => "<true> has content"],
  false: [(v) => v === "", () => "<false> has content"],
  date: [(v) => /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/.test(v) && !Number.isNaN(Date.parse(v)), () => "no date"],
  data: [(v) => isBase64(v.replaceAll(/\s+/g, "")), () => "<data> is no base64"],
};

function refuseValue(node: PlistNode, text: string): void {
  const value = node.text.trim();
  if (node.tag === "dict") refuseKeys(node, text);
  if (node.tag === "integer" && /^[+-]?0x/i.test(value)) {
    throw parseError(text, node.start, "a hexadecimal integer", "write it as a decimal number");
  }
  const [isValid, why] = VALUES[node.tag] ?? [() => true, String];
  if (!isValid(value)) throw parseError(text, node.start, why(JSON.stringify(node.text)));
}

function refuseKeys(dict: PlistNode, text: string): void {
  const known = new Set<string>();
  for (const [key, value] of entriesOf(dict)) {
    const wrong = (why: string, hint?: string) =>
      parseError(text, key.start, `the key ${JSON.stringify(key.text)} ${why}`, hint);
    if (!value) throw wrong("has no value");
    if (known.has(key.text)) throw wrong("is there twice", "remove one");
    if (key.text === "__proto__" || key.text === "") throw wrong("cannot be meant");
    known.add(key.text);
  }
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", apos: "'", quot: '"' };

/** The text of a leaf: raw, but of a key decoded, so that two spellings of one key are noticed. */
function takeText(raw: string, parent: PlistNode | undefined, at: number, text: string): void {
  if (!parent || !LEAVES.includes(parent.tag)) {
    if (/^[ \t\r\n]*$/.test(raw)) return;
    throw parseError(text, at, `text outside of a value: ${JSON.stringify(raw.slice(0, 20))}`);
  }
  const decoded = raw.replaceAll(/&([^;&\s]{0,12});?/g, (whole, name: string) => {
    const [, number = "-1"] = /^#(\d+|x[\da-f]+)$/i.exec(name) ?? [];
    const code = Number(number.replace(/^x/i, "0x"));
    // A return that is written as a number is read as another character by some readers.
    const isCharacter = code >= 0 && code !== 13 && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
    const one = ENTITIES[name] ?? (isCharacter ? String.fromCodePoint(code) : undefined);
    if (whole.endsWith(";") && one !== undefined) return one;
    throw parseError(text, at, `${JSON.stringify(whole)} is no entity of a plist`, "write & as &amp;");
  });
  refuseControls(decoded, at, text);
  parent.text += parent.tag === "key" ? decoded.replaceAll(/\r\n?/g, "\n") : raw;
}

function refuseControls(decoded: string, at: number, text: string): void {
  // deno-lint-ignore no-control-regex -- they are what is looked for
  if (/[\0-\x08\x0B\x0C\x0E-\x1F\uFFFE\uFFFF]/.test(decoded)) throw parseError(text, at, "it has a control character");
}

/** The declaration as XML 1.0 has it, at the very beginning; other instructions only need a name. */
function refuseEncoding(instruction: string, at: number, text: string): void {
  if (!/^<\?xml(\s|\?)/i.test(instruction)) {
    if (/^<\?[A-Za-z_][\w.-]*(\s|\?>$)/.test(instruction)) return;
    throw parseError(text, at, "a processing instruction has no name");
  }
  const found = DECLARATION.exec(instruction);
  if (!found || at > (text.startsWith("\uFEFF") ? 1 : 0)) {
    throw parseError(text, at, "its XML declaration is not well-formed");
  }
  const encoding = found[1] ?? "UTF-8";
  if (!/^(utf-?8|us-ascii)$/i.test(encoding)) {
    throw parseError(text, at, `its encoding is ${encoding}`, "save it as UTF-8");
  }
}

function indexAfter(text: string, mark: string, from: number, what: string): number {
  const found = text.indexOf(mark, from);
  if (found < 0) throw parseError(text, from, `${what} is never closed: the file is cut short`);
  return found + mark.length;
}

function parseError(text: string, at: number, why: string, hint?: string): Refusal {
  const line = text.slice(0, at).split("\n").length;
  return new Refusal(`Cannot read the plist: line ${line}: ${why}`, hint ?? plutil("-lint"));
}

/** The bytes of a plist file as text; a binary plist is refused with the command that converts it. */
export function decodePlist(bytes: Uint8Array, file: string): string {
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 8));
  const refusal = (why: string, hint = `plutil -convert xml1 ${quote(file)}`) =>
    new Refusal(`Cannot read the plist: ${why}`, hint);
  if (bytes.length > PLIST_LIMIT_BYTES) {
    throw refusal(`it has more than ${PLIST_LIMIT_BYTES} bytes`, `ls -l ${quote(file)}`);
  }
  if (head.startsWith("bplist")) throw refusal("it is a binary one, which cannot be edited");
  if (/^(\xFE\xFF|\xFF\xFE)/.test(head)) throw refusal("it is UTF-16", "save it as UTF-8");
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    throw refusal("it is not UTF-8");
  }
  if (/^\uFEFF?\s*</.test(text)) return text;
  throw refusal("it is no XML");
}

/** Reads a plist: our scanner says where the elements are and refuses, the package says what they mean. */
export function readPlist(text: string, parse: PlistReader) {
  const plist = readXml(text);
  const [root] = plist.children;
  if (root?.tag !== "dict") throw parseError(text, 0, "its root is no dict");
  try {
    return { text, root, value: parse(text.replace(/^\uFEFF/, "")) as Dict, parse };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw parseError(text, 0, error.message);
  }
}
export type Plist = Readonly<ReturnType<typeof readPlist>>;

function isDict(value: unknown): value is Dict {
  return Object(value) === value && ![Array, Date, Uint8Array].some((kind) => value instanceof kind);
}

function entriesOf(dict: PlistNode): (readonly [PlistNode, PlistNode | undefined])[] {
  return dict.children.flatMap((key, i) => i % 2 === 0 ? [[key, dict.children[i + 1]] as const] : []);
}

function nodeOf(dict: PlistNode, key: string): PlistNode | undefined {
  return entriesOf(dict).find(([k]) => k.text === key)?.[1];
}

/** A plain loop: `every()` takes a second on a 90 MB binary. */
function isSameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Whether two values of a plist are the same. */
export function isEqual(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return Object.is(a, b);
  if (Object.getPrototypeOf(a) !== Object.getPrototypeOf(b)) return false;
  if (a instanceof Date) return +a === +b;
  if (a instanceof Uint8Array) return isSameBytes(a, b as Uint8Array);
  const keys = Object.keys(a);
  const has = (key: string) => Object.hasOwn(b, key) && isEqual((a as Dict)[key], (b as Dict)[key]);
  return keys.length === Object.keys(b).length && keys.every(has);
}

// ───────────────────────────────────────────────────────────────────────────── the job in a plist ──

/** A job of launchd that starts this instance, bare or wrapped. All else is refused, with what to do about it. */
export function readJob({ value, root }: Plist, name: string) {
  const label = value["Label"];
  if (typeof label !== "string" || label === "") throw new Refusal("Cannot tell the job: it has no Label");
  const prefix = [DAEMON_LABEL, AGENT_LABEL].find((p) => label.startsWith(p)) ?? "";
  if (prefix !== "" && label !== prefix + name) {
    const hint = `lima-guard --install ${label.slice(prefix.length)}`;
    throw new Refusal(`Cannot take the job for ${name}: its Label is ${JSON.stringify(label)}`, hint);
  }
  const args = argumentsOf(value);
  const program = textAt(value, "Program");
  if (program !== undefined && program !== args[0]) {
    const why = `Program is ${JSON.stringify(program)}, the first of ProgramArguments ${JSON.stringify(args[0])}`;
    throw new Refusal(`Cannot tell what the job runs: ${why}`, "make them equal, or remove Program");
  }
  const behind = lookThroughShell(args);
  const wrapped = splitWrapped(behind ?? args, name);
  const [environment, keepAlive] = [jobEnvironment(value), value["KeepAlive"]];
  return {
    name,
    label,
    args,
    /** The guard that runs it, its options except `--run NAME`, and the command itself. */
    ...wrapped,
    /** Behind `/bin/sh -c "/bin/wait4path … && exec …"`, as Nix writes it: read, never edited. */
    isBehindShell: behind !== undefined,
    tool: readCommand(wrapped.command, name, environment),
    environment,
    startsByItself: value["RunAtLoad"] === true || (keepAlive !== undefined && keepAlive !== false),
    isDisabled: value["Disabled"] === true,
    remarks: remarksOn(value, label),
    program,
    userName: textAt(value, "UserName"),
    workingDirectory: textAt(value, "WorkingDirectory"),
    stdoutPath: textAt(value, "StandardOutPath"),
    stderrPath: textAt(value, "StandardErrorPath"),
    exitTimeOut: timeoutAt(value, root),
    grantedS: timeoutAt(value, root) ?? LAUNCHD_DEFAULT_S,
    keepAlive,
  };
}

export type LaunchdJob = Readonly<ReturnType<typeof readJob>>;

function timeoutAt(value: Dict, root: PlistNode): number | undefined {
  const seconds = value["ExitTimeOut"];
  const isInteger = nodeOf(root, "ExitTimeOut")?.tag === "integer";
  if (seconds === undefined || (typeof seconds === "number" && isInteger)) return seconds;
  throw new Refusal("Cannot read ExitTimeOut: it is no integer, and launchd ignores it", "remove it, or make it 60");
}

function argumentsOf(value: Dict): string[] {
  const args = value["ProgramArguments"];
  const isList = Array.isArray(args) && args.every((a) => typeof a === "string") && args.length > 0;
  if (!isList) throw new Refusal("Cannot tell the command: ProgramArguments is no list of strings", plutil("-p"));
  return args as string[];
}

function textAt(value: Dict, key: string): string | undefined {
  const v = value[key];
  if (v === undefined || typeof v === "string") return v;
  throw new Refusal(`Cannot read ${key}: it is no string`, plutil("-p"));
}

function jobEnvironment(value: Dict): Record<string, string> {
  const dict = value["EnvironmentVariables"];
  if (dict === undefined) return {};
  if (!isDict(dict)) throw new Refusal("Cannot read EnvironmentVariables: it is no dict", plutil("-p"));
  // launchd ignores values that are no strings.
  return Object.fromEntries(Object.entries(dict).flatMap(([k, v]) => typeof v === "string" ? [[k, v]] : []));
}

/** Conditions with their words; the words of those that hold. */
function holding(table: readonly (readonly [holds: boolean, words: string])[]): string[] {
  return table.flatMap(([holds, words]) => holds ? [words] : []);
}

/** What else in a job concerns a guarded stop or start: said, and left alone. */
function remarksOn(value: Dict, label: string): string[] {
  const keep = value["KeepAlive"];
  const crashed = isDict(keep) ? keep["Crashed"] : undefined;
  const path = jobEnvironment(value)["PATH"] ?? "";
  const isNix = /^(org\.nix-community|org\.nixos)\./.test(label);
  const kill = "launchd may kill the job at once instead of stopping it: remove it";
  return holding([
    [value["EnableTransactions"] === true, `EnableTransactions: ${kill}`],
    [value["EnablePressuredExit"] === true, `EnablePressuredExit: ${kill}`],
    [
      value["AbandonProcessGroup"] === true,
      "AbandonProcessGroup: should lima-guard be killed, launchd leaves limactl behind: remove it",
    ],
    [value["Disabled"] === true, "Disabled: launchd starts it only after `launchctl enable`"],
    [keep === true || crashed === false, "KeepAlive starts the instance again after every stop, asked for or not"],
    [crashed === true, "KeepAlive has Crashed: lima-guard ends with a status, not by a signal: launchd sees no crash"],
    [/\$(HOME|\{)|~/.test(path), "PATH has $HOME or ~ in it, which launchd does not expand"],
    [
      label.startsWith("homebrew.mxcl."),
      "Homebrew's services manage it: `brew services start|restart` writes the plist again; check after it",
    ],
    [isNix, "Nix manages it: the next switch writes the plist again; declare the change there"],
    [
      !isNix && argumentsOf(value).some((word) => word.startsWith("/nix/store/")),
      "its program is Nix's: where Nix wrote the plist, the next switch writes it again: declare the change there",
    ],
  ]);
}

/** The command behind Nix's `/bin/sh -c "/bin/wait4path DIR && exec …"`: exactly that, and words without shell characters. */
export function lookThroughShell(args: readonly string[]): string[] | undefined {
  if (args.length !== 3 || args[0] !== "/bin/sh" || args[1] !== "-c") return undefined;
  const found = /^\/bin\/wait4path \/[\w@%+=:,./-]* && exec ([\w@%+=:,./-]+(?: [\w@%+=:,./-]+)*)$/.exec(args[2] ?? "");
  return found?.[1]?.split(" ");
}

/** Options of lima-guard that take a value, as a wrapped command may have them. */
const GUARD_VALUES = ["--timeout", "--on-event", "--lima-home"];

/** The words before the command of `GUARD [options] --run NAME [options] -- COMMAND`: names, and options with their values. */
function guardWords(args: readonly string[]) {
  const end = args.indexOf("--");
  const own = args.slice(1, end < 0 ? args.length : end);
  const names: string[] = [];
  const options: string[] = [];
  for (let i = 0; i < own.length; i++) {
    const word = own[i] ?? "";
    if (word === "--run") continue;
    if (!word.startsWith("-")) names.push(word);
    else options.push(word, ...GUARD_VALUES.includes(word) ? [own[++i] ?? ""] : []);
  }
  return { names, options, command: end < 0 ? undefined : args.slice(end + 1) };
}

function splitWrapped(args: readonly string[], name: string) {
  if (!isGuard(args)) return { command: args, guard: undefined, guardOptions: [] };
  const { names, options, command } = guardWords(args);
  if (!command) throw new Refusal("Cannot tell the command: there is no `--` after lima-guard --run", plutil("-p"));
  if (names.length === 1 && names[0] === name) return { guard: args[0] ?? "", guardOptions: options, command };
  const why = `it is wrapped for ${names.map((n) => JSON.stringify(n)).join(" and ")}`;
  throw new Refusal(`Cannot take the job for ${name}: ${why}`, `lima-guard --uninstall ${names[0] ?? "NAME"}`);
}

function isGuard(args: readonly string[]): boolean {
  const end = args.indexOf("--");
  return /^lima-guard/.test(basename(args[0] ?? "")) && args.slice(0, end < 0 ? args.length : end).includes("--run");
}

function timeoutIn(options: readonly string[]): number | undefined {
  const text = optionOf(options, "--timeout");
  return text === undefined || !/^\d+$/.test(text) ? undefined : Number(text);
}

/** The options with one of them set to a value, in its old place; with an empty value without it. */
function withOption(options: readonly string[], flag: string, value: string | undefined): string[] {
  if (value === undefined) return [...options];
  const at = options.indexOf(flag);
  if (value === "") return options.filter((o, i) => i !== at && (at < 0 || i !== at + 1) && !o.startsWith(`${flag}=`));
  if (at >= 0) return options.toSpliced(at + 1, 1, value);
  return [...options.filter((o) => !o.startsWith(`${flag}=`)), flag, value];
}

/** Flags of `limactl` and `limactl start` (Lima 1.0 to 2.3): those with a value in the next argument, and those without. */
const LIMACTL_FLAGS = {
  valued: ("--log-level --log-format --timeout --name --arch --arch-variant --audio-device --audio-interface " +
    "--containerd --cpus --disk --dns --image-variant --memory --mount --mount-only --mount-type --network --param " +
    "--port-forward --set --shell --ssh-port --vm-type").split(" "),
  plain: ("--debug --tty --yes -y --help -h --foreground --progress --list-drivers --list-templates --mount-inotify " +
    "--mount-none --mount-writable --nested-virt --plain --rosetta --video").split(" "),
};
const COLIMA_FLAGS = {
  valued: [...COLIMA_VALUES],
  plain: ["--ssh-agent"].concat(
    ("--foreground -f --activate --force-disk-image --template --network-address --network-host-addresses " +
      "--network-preferred-route --vz-rosetta --nested-virtualization -z --binfmt --edit -e --save-config " +
      "--mount-inotify -s --ssh-config --kubernetes -k --with-kubernetes --verbose -v --very-verbose " +
      "--help -h").split(" "),
  ),
};

function readCommand(command: readonly string[], name: string, environment: Record<string, string>): Starter {
  const tool = basename(command[0] ?? "");
  const cannot = `Cannot wrap ${JSON.stringify(command.join(" "))}:`;
  if (tool !== "limactl" && tool !== "colima") {
    throw new Refusal(`${cannot} the program is ${JSON.stringify(tool)}, not limactl`, otherProgramHint(command));
  }
  if (/\.app\//.test(command[0] ?? "")) {
    const why = "an application owns this instance, and starts and stops it itself";
    throw new Refusal(`${cannot} ${why}`, `leave it to the application; lima-guard --pre ${name} before it starts`);
  }
  const { positionals, flags, unknown } = splitFlags(command.slice(1), tool);
  if (unknown !== undefined) {
    const why = `${unknown} is not known, so the next word may be its value or an instance`;
    throw new Refusal(`${cannot} ${why}`, `write it with its value in one word: ${unknown}=VALUE`);
  }
  const [verb, ...names] = positionals;
  if (verb !== "start") throw new Refusal(`${cannot} it does not start an instance`, `${tool} start`);
  const started = tool === "limactl" ? names : [instanceOfColima(command, environment["COLIMA_PROFILE"])];
  const foreground = flags.get("--foreground") ?? (tool === "colima" ? flags.get("-f") : undefined);
  const isForeground = foreground !== undefined && /^(true|1|t|)$/i.test(foreground);
  if (names.length > 1 || started.length !== 1) {
    const also = isForeground ? "" : ", and launchd does not watch it without --foreground";
    const hint = `one job for each instance: limactl autostart enable ${name} --condition=boot`;
    throw new Refusal(`${cannot} it names ${names.length} instances${also}`, hint);
  }
  if (started[0] !== name) {
    throw new Refusal(`Cannot take the job for ${name}: it starts ${JSON.stringify(started[0])}`, `name that one`);
  }
  if (!isForeground) {
    const hint = tool === "colima"
      ? "add -f to its ProgramArguments"
      : `limactl autostart enable ${name} --condition=boot, then remove this job`;
    throw new Refusal(`${cannot} without --foreground launchd does not watch it`, hint);
  }
  return tool;
}

function otherProgramHint(command: readonly string[]): string {
  const tool = basename(command[0] ?? "");
  if (/^(rdctl|finch|limactl\..*|rancher.*)$/.test(tool)) {
    return "the application owns this instance: leave its start to it, and make no second owner";
  }
  if (command.some((word) => word.includes("wait4path"))) {
    return "declare in Nix: lima-guard --run NAME -- before the command, behind wait4path";
  }
  if (/^(su|sudo|doas)$/.test(tool)) return "UserName in the plist, and limactl itself as the program";
  if (tool === "env") return "EnvironmentVariables in the plist, and limactl itself as the program";
  return "let ProgramArguments run limactl itself, without a shell, sudo or caffeinate";
}

function splitFlags(args: readonly string[], tool: Starter) {
  const { valued, plain } = tool === "limactl" ? LIMACTL_FLAGS : COLIMA_FLAGS;
  const positionals: string[] = [];
  const flags = new Map<string, string>();
  let unknown: string | undefined;
  for (let i = 0; i < args.length; i++) {
    let arg = args[i] ?? "";
    // Letters may stand together: -fp is -f -p.
    for (; plain.includes(arg.slice(0, 2)) && /^-[A-Za-z]{2}/.test(arg); arg = `-${arg.slice(2)}`) {
      flags.set(arg.slice(0, 2), "");
    }
    if (arg === "--") {
      positionals.push(...args.slice(i + 1));
      break;
    }
    const short = valued.includes(arg.slice(0, 2)) ? /^(-[A-Za-z])([^=].*)$/s.exec(arg) : undefined;
    const [flag = "", value] = (short ?? /^(-[^=]*)=(.*)$/s.exec(arg))?.slice(1) ?? [arg];
    if (!arg.startsWith("-") || arg === "-") positionals.push(arg);
    else {
      if (value === undefined && !valued.includes(flag) && !plain.includes(flag)) unknown ??= flag;
      flags.set(flag, value ?? (valued.includes(flag) ? args[++i] ?? "" : ""));
    }
  }
  return { positionals, flags, unknown };
}

/** The instance that the plist of some job starts, also one that no install takes: behind caffeinate, sudo or a shell. */
export function instanceOf(value: Dict): string | undefined {
  const list = value["ProgramArguments"];
  const [first = "", ...rest] = Array.isArray(list) ? list.map(String) : [];
  const args = [textAt(value, "Program") ?? first, ...rest];
  const bare = lookThroughShell(args) ?? args;
  if (isGuard(bare)) return guardWords(bare).names[0];
  const isTool = (word: string) => /^(limactl|colima)$/.test(basename(word));
  const words = bare.some(isTool) ? bare : bare.flatMap((word) => word.split(/[\s;&|'"()]+/));
  for (const [i, word] of words.entries()) {
    if (!isTool(word)) continue;
    const tool = basename(word) as Starter;
    const { positionals: [verb, name = "default"] } = splitFlags(words.slice(i + 1), tool);
    if (verb !== "start") continue;
    return tool === "limactl" ? name : instanceOfColima(words.slice(i), jobEnvironment(value)["COLIMA_PROFILE"]);
  }
  return undefined;
}

/** What the answer of `launchctl print DOMAIN/LABEL` says. A killed launchctl shows as status 0 with half an answer. */
export function readLoaded(answer: Answer): Loaded {
  if (answer.late) return { kind: "unknown", why: "launchctl print did not answer in time" };
  if (answer.code === NO_SERVICE) return { kind: "absent" };
  if (NO_SESSION.includes(answer.code)) return { kind: "no session" };
  if (answer.code !== 0) return { kind: "unknown", why: `launchctl print: ${inWords(answer)}` };
  const lines = answer.stdout.split("\n");
  const first = lines.indexOf("\targuments = {");
  const end = lines.indexOf("\t}", first);
  const { pid, exitTimeoutS, program, state, path } = readPrint(answer.stdout);
  const args = first < 0 ? [program ?? ""] : lines.slice(first + 1, end).map((line) => line.replace(/^\t\t/, ""));
  if (args[0] === "" || (first >= 0 && end < 0)) return { kind: "unknown", why: "launchctl print gave half an answer" };
  const isEnding = /^(SIG(TERM|KILL)ed|languishing)$/.test(state ?? "");
  const startsByItself = /\b(runatload|keepalive)\b/.test(answer.stdout.match(/^\tproperties = .*$/gm)?.at(-1) ?? "");
  // The last block of them beats what is inherited.
  const blocks = [...answer.stdout.matchAll(/^\t(?:\w+ )?environment = \{\n(?:\t\t.*\n)*/gm)].map(([block]) => block);
  const variablesIn = (text: string) =>
    Object.fromEntries([...text.matchAll(/^\t\t(\w+) => (.*)$/gm)].map(([, ...entry]) => entry));
  const environment = blocks.length === 0 ? undefined : variablesIn(blocks.join(""));
  const inherited = variablesIn(blocks.filter((block) => block.startsWith("\tinherited ")).join(""));
  const userName = /^\tusername = (.+)$/m.exec(answer.stdout)?.[1];
  const lastExit = [...answer.stdout.matchAll(/^\tlast exit code = (\d+)/gm)].map(([, code]) => Number(code)).at(-1);
  const job = { args, environment, inherited, userName, isEnding, path, pid, exitTimeoutS, lastExit, startsByItself };
  return { kind: "loaded", ...job };
}

/** Whether `launchctl print-disabled DOMAIN` names the label as switched off, or on; absent: as its plist says. */
export function readDisabled(text: string, label: string): boolean | undefined {
  const found = text.split("\n").filter((line) => line.trim().startsWith(`"${label}" =>`));
  return found.length === 0 ? undefined : found.some((line) => /=> (disabled|true)\b/.test(line));
}

/** Lima's labels among the services that `launchctl print DOMAIN` lists; in quotes are what was once disabled. */
function readLimaLabels(text: string): string[] {
  return [...new Set([...text.matchAll(/\b(?<!")io\.lima-vm\.(?:daemon|autostart)\.[\w.-]+/g)].map(([one]) => one))];
}

/** A user of `id -P`: ten fields, the home is the last but one. */
export function readUser(line: string) {
  const fields = line.trim().split(":");
  const [name = "", , uid, gid] = fields;
  const home = fields.at(-2) ?? "";
  if (fields.length < 7 || name === "" || !/^\d+$/.test(uid ?? "") || !home.startsWith("/")) return undefined;
  return { name, uid: Number(uid), gid: Number(gid), home };
}
type User = Readonly<NonNullable<ReturnType<typeof readUser>>>;

/** `lima-guard X.Y.Z`, from a command that ended well. */
function readVersion(answer: Answer): string | undefined {
  return answer.code === 0 && !answer.late ? /^lima-guard (\d+\.\d+\.\d+\S*)\n?$/.exec(answer.stdout)?.[1] : undefined;
}

/** Negative where `a` is older than `b`; a version with a suffix is older than the one without. */
export function compareVersions(a: string, b: string): number {
  const parts = (v: string) => v.split(/[-+]/, 1)[0]?.split(".").map(Number) ?? [];
  const [x, y] = [parts(a), parts(b)];
  for (let i = 0; i < 3; i++) if (x[i] !== y[i]) return (x[i] ?? 0) - (y[i] ?? 0);
  return Number(b.includes("-")) - Number(a.includes("-"));
}

/** How a command ended, for people: launchctl's codes have words. */
function inWords(answer: Answer): string {
  if (answer.late) return "it did not end in time";
  const isLaunchctl = answer.argv.some((word) => basename(word) === "launchctl");
  const words = isLaunchctl ? LAUNCHCTL_WORDS[answer.code] : undefined;
  const said = answer.stderr.trim().split("\n").at(-1);
  return [`status ${answer.code}`, words, said].filter(Boolean).join(": ");
}

/** A JSON object; an empty one where the text is none. */
function jsonOf(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text));
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    return {};
  }
}

/** What the last run has noted beside the plist; anything that is not of that shape is left out. */
function readMemory(text: string) {
  const { guard, isPlaced, options, keepAlive, wrote, bootedOut } = jsonOf(text);
  const isTexts = Array.isArray(options) && options.every((o) => typeof o === "string" && !/^--run$|^--$/.test(o));
  const { boot, wasRunning, wasDisabled } = Object(bootedOut) as Record<string, unknown>;
  const isMark = typeof boot === "string" && typeof wasRunning === "boolean";
  return {
    guard: typeof guard === "string" && guard.startsWith("/") ? guard : undefined,
    /** It was put there by an install, and an upgrade replaces it. */
    isPlaced: typeof isPlaced === "boolean" ? isPlaced : undefined,
    options: isTexts ? options as readonly string[] : undefined,
    keepAlive: typeof keepAlive === "boolean" ? keepAlive : undefined,
    /** The keys that are the install's, with its values; undefined where an older version has noted none. */
    wrote: isDict(wrote) ? wrote : undefined,
    bootedOut: isMark ? { boot, wasRunning, wasDisabled: wasDisabled === true } : undefined,
  };
}

/** What the last install was asked for; and the job that it had booted out when it was interrupted. */
type Memory = Readonly<ReturnType<typeof readMemory>>;

// ─────────────────────────────────────────────────────────────────────────────────── the new text ──

/** What install wants of a plist. Keys that are undefined stay as they are. */
export interface Wanted {
  readonly guard: string;
  readonly guardOptions?: readonly string[];
  readonly exitTimeoutS?: number;
  readonly keepAlive?: boolean;
  readonly limaHome?: string | undefined;
  /** Paths that are on a volume which is not there at boot, where the plist has them. */
  readonly moved?: Partial<Record<"WorkingDirectory" | "StandardOutPath" | "StandardErrorPath", string | undefined>>;
}

/** No other keys are changed. */
const OWNED = ("ProgramArguments Program ExitTimeOut KeepAlive EnvironmentVariables " +
  "WorkingDirectory StandardOutPath StandardErrorPath").split(" ");

/** Rewrites the text in place: every byte outside of the keys that are to change stays as it is. */
export function wrapText(plist: Plist, job: LaunchdJob, wanted: Wanted): Rewritten {
  const { exitTimeoutS } = wanted;
  const edits = guardEdits(plist, job, wanted);
  if (job.program !== undefined && job.program !== wanted.guard) {
    edits.push(setEdit(plist, "Program", stringElement(wanted.guard)));
  }
  if (exitTimeoutS !== undefined && exitTimeoutS !== job.exitTimeOut) {
    edits.push(setEdit(plist, "ExitTimeOut", `<integer>${exitTimeoutS}</integer>`));
  }
  edits.push(...keepAliveEdits(plist, job, wanted), ...limaHomeEdits(plist, job, wanted));
  for (const [key, path] of Object.entries(wanted.moved ?? {})) {
    const isThere = path !== undefined && nodeOf(plist.root, key) !== undefined;
    if (isThere && plist.value[key] !== path) edits.push(setEdit(plist, key, stringElement(path)));
  }
  const changed = rewrite(plist, edits);
  const now = readJob(changed.plist, job.name);
  const isAsWanted = now.guard === wanted.guard && isEqual(now.command, job.command) &&
    (exitTimeoutS === undefined || now.exitTimeOut === exitTimeoutS) &&
    (job.program === undefined || now.program === wanted.guard);
  if (isAsWanted) return changed;
  throw new Refusal("Cannot rewrite the plist: internal error: another job came out: please report it");
}

function inPlaceOf(node: PlistNode, text: string) {
  return { at: node.start, until: node.end, text };
}
type TextEdit = Readonly<ReturnType<typeof inPlaceOf>>;

/** Puts a value in the place of the old one, or behind the last key that a person would look at: ProgramArguments. */
function setEdit(plist: Plist, key: string, element: string): TextEdit {
  const node = nodeOf(plist.root, key);
  if (node) return inPlaceOf(node, element);
  if (Object.hasOwn(plist.value, key)) throw new Refusal(`Cannot find ${key} in the text`, plutil("-p"));
  const { list: { end }, key: before, value: between } = layoutOf(plist);
  // Behind what a person has noted at the end of the line.
  const note = /^(?:[ \t]*<!--(?:(?!-->)[^\r\n])*-->)+(?=[\r\n])/.exec(plist.text.slice(end))?.[0] ?? "";
  const at = end + note.length;
  return { at, until: at, text: `${before}<key>${key}</key>${between}${element}` };
}

/** KeepAlive where it is wanted and missing; and `SuccessfulExit: true` turned round, which starts a stopped job again. */
function keepAliveEdits(plist: Plist, job: LaunchdJob, wanted: Wanted): TextEdit[] {
  if (job.keepAlive === undefined && wanted.keepAlive) {
    return [setEdit(plist, "KeepAlive", dictElement(layoutOf(plist), "SuccessfulExit", "<false/>"))];
  }
  const node = nodeOf(plist.root, "KeepAlive");
  const exit = node && nodeOf(node, "SuccessfulExit");
  return exit && restartsOnSuccess(job.keepAlive) ? [inPlaceOf(exit, "<false/>")] : [];
}

/** Whether this KeepAlive starts a job again after status 0 and leaves it down after another: the wrong way round. */
function restartsOnSuccess(keepAlive: Value | undefined): boolean {
  return isDict(keepAlive) && keepAlive["SuccessfulExit"] === true;
}

function limaHomeEdits(plist: Plist, job: LaunchdJob, wanted: Wanted): TextEdit[] {
  const { limaHome } = wanted;
  if (limaHome === undefined || job.environment["LIMA_HOME"] !== undefined) return [];
  const layout = layoutOf(plist);
  const environment = nodeOf(plist.root, "EnvironmentVariables");
  if (environment && !environment.isEmptyTag) {
    return [insertInto(environment, layout, plist.text, "LIMA_HOME", stringElement(limaHome))];
  }
  return [setEdit(plist, "EnvironmentVariables", dictElement(layout, "LIMA_HOME", stringElement(limaHome)))];
}

/** GUARD --run NAME [options] -- before the old command, each on a line like the old ones. */
function guardEdits(plist: Plist, job: LaunchdJob, { guard, guardOptions }: Wanted): TextEdit[] {
  const { list, item } = layoutOf(plist);
  const [first] = list.children;
  const command = list.children[job.isBehindShell ? 2 : job.args.length - job.command.length];
  if (!first || !command) return [];
  const options = guardOptions ?? job.guardOptions;
  const isSameHead = job.guard !== undefined && isEqual(options, job.guardOptions);
  if (isSameHead && job.guard === guard) return [];
  if (isSameHead && !job.isBehindShell) return [inPlaceOf(first, stringElement(guard))];
  const words = [guard, "--run", job.name, ...options, "--"];
  if (job.isBehindShell) {
    // The whole command is one string there: for `--print`.
    const wait = /^.*? && exec /.exec(job.args[2] ?? "")?.[0] ?? "";
    return [inPlaceOf(command, stringElement(wait + [...words, ...job.command].join(" ")))];
  }
  const prefix = words.map((arg) => `${stringElement(arg)}${item}`).join("");
  return [{ at: first.start, until: command.start, text: prefix }];
}

/** The white space that this text puts before a key, between key and value, before an item, and its indentation. */
function layoutOf({ root, text }: Plist) {
  const [key, list] = entriesOf(root).find(([key]) => key.text === "ProgramArguments") ?? [];
  if (!key || !list) throw new Refusal("Cannot find ProgramArguments in the text", plutil("-p"));
  const between = blankBetween(text, key, list);
  const [before, item] = [blankBefore(text, key.start), blankBefore(text, list.children[0]?.start ?? list.innerStart)];
  const isNested = item.startsWith(before) && before.includes("\n");
  const indent = isNested ? item.slice(before.length) : before.includes("\n") ? "\t" : "";
  return { list, key: before, value: between ?? before, item, indent };
}
type TextLayout = Readonly<ReturnType<typeof layoutOf>>;

/** The white space between a key and its value; undefined where there is a comment too. */
function blankBetween(text: string, key: PlistNode, value: PlistNode): string | undefined {
  const between = text.slice(key.end, value.start);
  return between.trim() === "" ? between : undefined;
}

/** Outside of values a plist has no other white space than blanks, tabs, returns and line ends. */
function blankBefore(text: string, at: number): string {
  const before = text.slice(0, at);
  return before.slice(before.trimEnd().length);
}

function stringElement(text: string): string {
  return `<string>${text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;")}</string>`;
}

function dictElement({ key, value, indent }: TextLayout, name: string, element: string): string {
  return `<dict>${key}${indent}<key>${name}</key>${value === key ? key + indent : value}${element}${key}</dict>`;
}

/** Another entry at the end of a dict: laid out like the last one there is. */
function insertInto(dict: PlistNode, layout: TextLayout, text: string, name: string, element: string): TextEdit {
  const [key, value] = entriesOf(dict).at(-1) ?? [];
  const before = key ? blankBefore(text, key.start) : layout.key + layout.indent;
  const between = key && value ? blankBetween(text, key, value) ?? before : layout.value;
  const at = value?.end ?? dict.innerStart;
  return { at, until: at, text: `${before}<key>${name}</key>${between}${element}` };
}

/** Applies the edits, and reads the new text: except for our keys it must say exactly what the old one said. */
function rewrite(old: Plist, edits: readonly TextEdit[]) {
  // From the end: what is before an edit keeps its place.
  const sorted = edits.toSorted((a, b) => a.at - b.at).toReversed();
  if (sorted.some(({ until }, i) => until > (sorted[i - 1]?.at ?? old.text.length))) {
    throw new Refusal("Cannot rewrite the plist: internal error: two edits overlap: please report it");
  }
  const text = sorted.reduce((done, edit) => done.slice(0, edit.at) + edit.text + done.slice(edit.until), old.text);
  const plist = readPlist(text, old.parse);
  const rest = (value: Dict) => Object.fromEntries(Object.entries(value).filter(([key]) => !OWNED.includes(key)));
  const env = (value: Dict) => ({ ...value["EnvironmentVariables"] as Dict | undefined, LIMA_HOME: "" });
  if (!isEqual(rest(old.value), rest(plist.value)) || !isEqual(env(old.value), env(plist.value))) {
    throw new Refusal("Cannot rewrite the plist: internal error: other keys would change: please report it");
  }
  const changes = OWNED.map((key) => ({ key, before: old.value[key], after: plist.value[key] }))
    .filter(({ before, after }) => !isEqual(before, after));
  return { plist, text, changes };
}

/** A new text of the plist, and what is different in it. No changes: the text is as wanted already. */
type Rewritten = Readonly<Omit<ReturnType<typeof rewrite>, "plist">>;

/**
 * Takes the guard out of the text again, in place. The backup knows what our keys said before; where nothing else was
 * changed since, what comes out are the backup's very bytes. Without a backup only the command goes back; and of what
 * install is known to have written only what is still so.
 */
export function unwrapText(
  plist: Plist,
  job: LaunchdJob,
  { backup, wrote }: { readonly backup?: Plist | undefined; readonly wrote?: Dict | undefined } = {},
): Rewritten {
  const { root, text } = plist;
  const { list: { children } } = layoutOf(plist);
  const [first, command] = [children[0], children[job.args.length - job.command.length]];
  if (job.guard === undefined || !first || !command) return { text, changes: [] };
  const edits: TextEdit[] = [{ at: first.start, until: command.start, text: "" }];
  const program = nodeOf(root, "Program");
  const isSame = backup?.value["Program"] === job.command[0];
  if (program && backup && isSame) edits.push(restoredEdit(plist, backup, "Program"));
  else if (program) edits.push(inPlaceOf(program, stringElement(job.command[0] ?? "")));
  const restore = (key: string, isOurs: (now: Value, before: Value | undefined) => boolean) => {
    const now = nodeOf(root, key) && (plist.value[key] ?? "");
    // The time of a stop is the install's, also where it was changed since.
    const isWritten = wrote === undefined || key === "ExitTimeOut" || isEqual(now, wrote[key]);
    if (backup && now !== undefined && isWritten && isOurs(now, backup.value[key])) {
      edits.push(restoredEdit(plist, backup, key));
    }
  };
  // 0 would let launchd wait without end: as good as none, but it was there before us.
  const isTimeout = (value: Value) => Number.isInteger(value) && Number(value) >= 0;
  restore("ExitTimeOut", (now, before) => now !== before && (before === undefined || isTimeout(before)));
  restore("KeepAlive", isKeepAliveOfOurs);
  restore("WorkingDirectory", (now, before) => now === "/" && typeof before === "string");
  restore("StandardOutPath", (now, before) => isOurLog(now) && typeof before === "string");
  restore("StandardErrorPath", (now, before) => isOurLog(now) && typeof before === "string");
  const home = Object(wrote?.["EnvironmentVariables"])["LIMA_HOME"];
  if (backup && (!wrote || home === job.environment["LIMA_HOME"])) edits.push(...environmentEdits(plist, backup));
  return rewrite(plist, edits);
}

/** What install has made of a KeepAlive: one where there was none, or `SuccessfulExit: true` turned round. */
function isKeepAliveOfOurs(now: Value, before: Value | undefined): boolean {
  if (before === undefined) return isEqual(now, { SuccessfulExit: false });
  return isDict(before) && restartsOnSuccess(before) && isEqual(now, { ...before, SuccessfulExit: false });
}

/** A key with the very text that it has in the backup, or gone. */
function restoredEdit({ root, text }: Plist, backup: Plist, key: string): TextEdit {
  const [now, before] = [nodeOf(root, key), nodeOf(backup.root, key)];
  return now && before ? inPlaceOf(now, backup.text.slice(before.start, before.end)) : removalEdit(root, key, text);
}

function environmentEdits(plist: Plist, backup: Plist): TextEdit[] {
  const key = "EnvironmentVariables";
  const [now, before] = [nodeOf(plist.root, key), nodeOf(backup.root, key)];
  if (!now || !nodeOf(now, "LIMA_HOME") || (before && nodeOf(before, "LIMA_HOME"))) return [];
  if (now.children.length === 2 && (!before || before.isEmptyTag)) return [restoredEdit(plist, backup, key)];
  return [removalEdit(now, "LIMA_HOME", plist.text)];
}

function isOurLog(path: Value | undefined): path is string {
  return typeof path === "string" && /\/Logs\/lima-guard\/[^/]+\.std(out|err)\.log$/.test(path);
}

/** Takes a key out, with its value and the white space before it. */
function removalEdit(dict: PlistNode, key: string, text: string): TextEdit {
  const [node, value] = entriesOf(dict).find(([k]) => k.text === key) ?? [];
  if (!node || !value) throw new Refusal(`Cannot find ${key} in the text`, plutil("-p"));
  return { at: node.start - blankBefore(text, node.start).length, until: value.end, text: "" };
}

// ──────────────────────────────────────────────────────────────────────────── who can change what ──

/**
 * Who may be able to change a path. `place`: something is to be made there; `run`: what is there is to be run or read;
 * `copy`: it is read now, and not needed later.
 */
interface Trust {
  readonly uids: readonly number[];
  readonly admins: "may" | "may not";
  readonly purpose: "place" | "run" | "copy";
}

/** What root writes or runs: a path that only root can change. */
export const ONLY_ROOT: Trust = { uids: [0], admins: "may not", purpose: "place" };

/** For the files of one user: what he and root can change. */
export function trustOf(uid: number, purpose: Trust["purpose"]): Trust {
  return uid === 0 ? { ...ONLY_ROOT, purpose } : { uids: [0, uid], admins: "may", purpose };
}

interface PathVerdict {
  readonly why: string | undefined;
  readonly hint: string | undefined;
  readonly warnings: readonly string[];
}

/**
 * Who can change the file behind a path: its file, every folder on the way, and every link with its folder. A sticky
 * folder protects what lies in it, but another user may be the first to make what is to lie there.
 */
export function checkPathOwners(way: readonly FileLook[], trust: Trust): PathVerdict {
  const warnings: string[] = [];
  for (const look of way) {
    const hint = `ls -led ${quote(look.path)}`;
    const bad = (why: string) => ({ why: `${look.path} ${why}`, hint, warnings });
    if (!trust.uids.includes(look.uid)) return bad(`belongs to user ${look.uid}, who could change it`);
    // A link has no mode of its own: its folder decides.
    if (look.kind === "link") continue;
    const isProtected = look.kind === "directory" && (look.mode & 0o1000) !== 0 && trust.purpose === "run";
    if ((look.mode & 0o002) !== 0 && !isProtected) return bad("can be written by every user");
    if ((look.mode & 0o020) === 0 || isProtected) continue;
    const isAdmin = look.gid === ADMIN_GID || look.gid === WHEEL_GID;
    if (!isAdmin || trust.admins === "may not") return bad(`can be written by group ${look.gid}`);
    warnings.push(`${look.path} can be written by group ${look.gid === ADMIN_GID ? "admin" : "wheel"}`);
  }
  return { why: undefined, hint: undefined, warnings };
}

const ACL_RIGHTS = /\b(write|append|add_file|add_subdirectory|delete|delete_child|writesecurity|chown)\b/;

/** The first entry of `ls -lde` that lets another user change something; these names may. */
export function readAcl(text: string, names: readonly string[]): string | undefined {
  return text.split("\n").find((line) => {
    const [, who, rights = ""] = /^ *\d+: (.+?) (?:inherited )?allow (.*)$/.exec(line) ?? [];
    return who !== undefined && ACL_RIGHTS.test(rights) && !names.includes(who);
  })?.trim();
}

function isUnder(path: string, folder: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

// ──────────────────────────────────────────────────────────────────────── the plan and the check ──

type Argv = readonly [string, ...string[]];

/** What `launchctl print` must say at the end. */
interface Expected {
  readonly args: readonly string[];
  readonly exitTimeoutS: number;
  readonly isRunning: boolean;
}

/** A step of a plan: plain data. `what` is what is printed, in a dry run and before it is done. */
type InstallStep =
  & { readonly what: string; readonly because: string; readonly outcome?: string }
  & (
    | { readonly kind: "place"; readonly path: string; readonly bytes: Uint8Array; readonly sign: string | undefined }
    | { readonly kind: "write"; readonly path: string; readonly bytes: Uint8Array; readonly isPlist: boolean }
    | { readonly kind: "folder" | "remove" | "clear"; readonly path: string }
    | { readonly kind: "handshake" | "run" | "logs" | "tidy" | "bootout"; readonly argv: Argv }
    | { readonly kind: "stop"; readonly argv: Argv; readonly pid: number }
    | { readonly kind: "wait"; readonly loaded: Loaded & { kind: "loaded" } }
    | { readonly kind: "bootstrap"; readonly argv: Argv; readonly expect: Expected }
    | { readonly kind: "verify"; readonly expect: Expected }
  );

type StepOf<K extends InstallStep["kind"]> = InstallStep & { readonly kind: K };

/** What is to be reached: the text of the file, the guard in its place, and whether launchd is to know. */
interface Target {
  readonly role: "install" | "uninstall";
  readonly facts: JobFacts;
  readonly rewritten: Rewritten;
  readonly job: LaunchdJob;
  readonly guard: GuardFacts | undefined;
  readonly reload: boolean;
  readonly enables: boolean;
  /** The guard that stops the instance; undefined where there is none, and launchd must do. */
  readonly stopWith: string | undefined;
  /** The folder of the logs, to be made by the job's user; and logs that go with the job. */
  readonly logFolder: string | undefined;
  readonly purgedLogs: readonly string[];
  /** The folder of the logs, where nothing else is in it. */
  readonly purgedFolder: string | undefined;
  readonly memory: Memory | undefined;
  /** Uninstall of a job whose instance is gone: the plist goes too. */
  readonly removesJob: boolean;
  readonly purged: readonly string[];
  /** What a run that was killed has left, the files before their folder. */
  readonly litter: readonly string[];
}

/** Who carries the plan out, in which boot, and where the tools are. */
type Actor = Pick<InstallHost, "uid" | "tool"> & { readonly boot: string };

/** sysctl did not answer: what a run has noted could be of this boot or of another one. */
const UNKNOWN_BOOT = "unknown";

/** A command as this user: as ourselves, or as one child of root that is he. */
function asUser(actor: Actor, uid: number, argv: Argv): Argv | undefined {
  if (uid === actor.uid) return argv;
  return actor.uid === 0 ? [actor.tool("sudo"), "-n", "-H", "-u", `#${uid}`, ...argv] : undefined;
}

function runStep<K extends InstallStep["kind"]>(kind: K, argv: Argv, because: string) {
  return { kind, argv, what: argv.map(quote).join(" "), because };
}

/** The whole plan of an install or uninstall; empty where all is as wanted. */
function planSteps(target: Target, actor: Actor): InstallStep[] {
  const { facts, rewritten, role, removesJob, memory } = target;
  const { backup: kept, bytes, job, loaded, disabled, place: { file, target: plist, beside } } = facts;
  const backup = beside + BACKUP_SUFFIX;
  const isFileNew = rewritten.changes.length > 0;
  const loads = target.reload ? loadSteps(target, actor) : [];
  const marks = loads.some((s) => s.kind === "bootout") && !removesJob;
  const steps: InstallStep[] = target.litter.map((path) => remove(path, "a run that was killed has left it", "clear"));
  steps.push(...guardSteps(target, actor), ...logSteps(target, actor));
  if (role === "install" && isFileNew && job.guard === undefined) {
    steps.push(write(backup, bytes, "the plist as it is now"));
  }
  // What a run that is killed leaves to be done stays noted until it is done.
  const older = loads.length > 0 || facts.isLeftEnabled ? facts.memory.bootedOut : memory?.bootedOut;
  const marked = { boot: actor.boot, wasRunning: isRunning(loaded), wasDisabled: disabled === true };
  const noted = { ...memory ?? facts.memory, bootedOut: marks ? marked : older };
  if (marks) steps.push(noteStep(facts, noted, "a run that is interrupted loads it again"));
  else if (role === "install" && (isFileNew || isKnown(facts.memory))) {
    steps.push(...memorySteps(facts, noted, facts.memory));
  }
  if (isFileNew) {
    steps.push(write(plist, new TextEncoder().encode(rewritten.text), "at once: there is always a plist", true));
  }
  steps.push(...loads);
  const verb = facts.isLeftEnabled ? "disable" : target.enables && disabled === true ? "enable" : undefined;
  if (verb && !target.reload) steps.push(switchStep(facts, verb, actor));
  // A link in launchd's folder goes with the file that it leads to: a dangling one would still be a job's.
  const own = removesJob && plist === beside ? new Set([file, plist]) : [];
  steps.push(...[...own].map((path) => remove(path, "its instance is gone")));
  // Removed only if it was read: the one copy of the original must not be lost.
  const isUsed = role === "uninstall" && kept !== undefined &&
    (isFileNew || removesJob || (job.guard === undefined && isSameBytes(kept.bytes, bytes)));
  if (isUsed) steps.push(remove(backup, "the plist is as it was before"));
  const isOver = marks || (isKnown(facts.memory) && (isFileNew || removesJob || job.guard === undefined));
  if (role === "install") steps.push(...memorySteps(facts, memory ?? {}, noted));
  else if (isOver) steps.push(remove(beside + MEMORY_SUFFIX, "no job needs it"));
  steps.push(...target.purged.map((path) => remove(path, "--purge: no job needs it")));
  return [...steps, ...purgedLogSteps(target, actor)];
}

/** In the user's own folder, so by the user. */
function purgedLogSteps({ purgedLogs, purgedFolder, facts }: Target, actor: Actor): InstallStep[] {
  const steps: InstallStep[] = [];
  const rm = asUser(actor, facts.user.uid, [actor.tool("rm"), "-f", ...purgedLogs]);
  if (rm && purgedLogs.length > 0) steps.push(runStep("logs", rm, "--purge: the logs of this job"));
  const rmdir = asUser(actor, facts.user.uid, [actor.tool("rmdir"), purgedFolder ?? ""]);
  if (rmdir && purgedFolder !== undefined) steps.push(runStep("tidy", rmdir, "--purge: no log is left in it"));
  return steps;
}

function write(path: string, bytes: Uint8Array, because: string, isPlist = false): InstallStep {
  return { kind: "write", path, bytes, isPlist, what: `write ${path}`, because };
}

function noteStep({ place }: JobFacts, noted: Partial<Memory>, because: string): InstallStep {
  return write(place.beside + MEMORY_SUFFIX, new TextEncoder().encode(`${JSON.stringify(noted)}\n`), because);
}

function remove(path: string, because: string, kind: "remove" | "clear" = "remove"): InstallStep {
  return { kind, path, what: `remove ${path}`, because };
}

function isRunning(loaded: Loaded): boolean {
  return loaded.kind === "loaded" && loaded.pid !== undefined;
}

function isKnown(memory: Memory): boolean {
  return Object.values(memory).some((noted) => noted !== undefined);
}

function memorySteps(facts: JobFacts, wanted: Partial<Memory>, there: Partial<Memory>): InstallStep[] {
  return isEqual(wanted, there) ? [] : [noteStep(facts, wanted, "what this job was installed with")];
}

function guardSteps({ guard, facts }: Target, actor: Actor): InstallStep[] {
  if (!guard) return [];
  const because = "the folder of lima-guard";
  const steps: InstallStep[] = guard.missing.map((path) => ({ kind: "folder", path, what: `make ${path}`, because }));
  const { path, bytes, sign, previous } = guard;
  if (bytes) {
    const kept = previous === undefined ? "" : `; the one in place is kept as ${GUARD_NAME}${PREVIOUS_SUFFIX}`;
    const because = `${(bytes.length / 1e6).toFixed(1)} MB${kept}`;
    steps.push({ kind: "place", path, bytes, sign, what: `write ${path}`, because });
  }
  if (guard.isSigned) steps.push(runStep("run", [actor.tool("codesign"), "--verify", path], "its signature"));
  const argv = asUser(actor, facts.user.uid, [path, "--version"]);
  if (argv) steps.push(runStep("handshake", argv, `it must answer to ${facts.user.name}, in its place`));
  return steps;
}

function logSteps({ logFolder, facts }: Target, actor: Actor): InstallStep[] {
  if (logFolder === undefined) return [];
  const argv = asUser(actor, facts.user.uid, [actor.tool("mkdir"), "-p", logFolder]);
  return argv ? [runStep("logs", argv, "the job's log must not wait for the volume")] : [];
}

/** Stop, unload, load, look; only what the job's state asks for. */
function loadSteps(target: Target, actor: Actor): InstallStep[] {
  const { facts, job, removesJob } = target;
  const { loaded, memory } = facts;
  const steps = loaded.kind === "loaded" ? unloadSteps(target, loaded, actor) : [];
  if (removesJob) return steps;
  const wasRunning = loaded.kind === "loaded" ? isRunning(loaded) : memory.bootedOut?.wasRunning === true;
  const load = bootstrapSteps(facts, job, wasRunning, actor);
  return [...steps, ...whileEnabled(facts, load, !target.enables, actor)];
}

/** Enables a disabled job to be loaded, and disables it again where it is to be as before. */
function whileEnabled(facts: JobFacts, load: InstallStep[], staysOff: boolean, actor: Actor): InstallStep[] {
  if (facts.disabled !== true) return load;
  return [switchStep(facts, "enable", actor), ...load, ...staysOff ? [switchStep(facts, "disable", actor)] : []];
}

function switchStep({ domain, job }: JobFacts, verb: "enable" | "disable", actor: Actor): InstallStep {
  const because = verb === "enable" ? "a disabled job does not start" : "it was disabled";
  return runStep("run", [actor.tool("launchctl"), verb, `${domain}/${job.label}`], because);
}

function unloadSteps(target: Target, loaded: Loaded & { kind: "loaded" }, actor: Actor): InstallStep[] {
  const { facts: { user, loadedHome, place, domain }, job, stopWith } = target;
  const service = `${domain}/${job.label}`;
  const argv: Argv = [stopWith ?? "", "--stop", "--json", "--lima-home", loadedHome, place.name];
  const stop = stopWith === undefined ? undefined : asUser(actor, user.uid, argv);
  const { pid } = loaded;
  const cut = "launchd's own stop would cut the guest off";
  const steps: InstallStep[] = stop && pid !== undefined ? [{ ...runStep("stop", stop, cut), pid }] : [];
  const bootout: Argv = [actor.tool("launchctl"), "bootout", service];
  steps.push(runStep("bootout", bootout, "launchd keeps the old job until then"));
  const what = `wait until ${service} is gone`;
  return [...steps, { kind: "wait", loaded, what, because: "launchd takes no new job before" }];
}

function bootstrapSteps({ place, domain }: JobFacts, job: LaunchdJob, wasRunning: boolean, actor: Actor) {
  const service = `${domain}/${job.label}`;
  const argv: Argv = [actor.tool("launchctl"), "bootstrap", domain, place.file];
  const expect = { args: job.args, exitTimeoutS: job.grantedS, isRunning: wasRunning };
  const steps: InstallStep[] = [{ ...runStep("bootstrap", argv, "launchd reads the plist"), expect }];
  if (wasRunning && !job.startsByItself) {
    const kickstart: Argv = [actor.tool("launchctl"), "kickstart", service];
    steps.push(runStep("run", kickstart, "it ran before, and does not start by itself"));
  }
  return [...steps, verifyStep(service, expect, "a status alone proves nothing")];
}

function verifyStep(service: string, expect: Expected, because: string): InstallStep {
  return { kind: "verify", expect, what: `look at launchctl print ${service}`, because };
}

/** Loaded with these arguments, and not about to be gone. */
function isLoadedAs(loaded: Loaded, args: readonly string[] | undefined): boolean {
  return loaded.kind === "loaded" && !loaded.isEnding && isEqual(loaded.args, args);
}

/** lima-guard ends its instance gracefully by itself, also where launchd ends the job; a bare limactl would be cut off. */
function isBare(loaded: Loaded): boolean {
  return loaded.kind === "loaded" && isRunning(loaded) && !isGuard(lookThroughShell(loaded.args) ?? loaded.args);
}

/** Whether a plan that was made for what launchd had then is still one for what it has now. */
function isUnchanged(then: Loaded, now: Loaded): boolean {
  if (then.kind !== "loaded") return then.kind === now.kind;
  if (now.kind !== "loaded") return then.isEnding && now.kind === "absent";
  // Another process of the same job is stopped like the first one.
  return isEqual(then.args, now.args) && then.isEnding === now.isEnding && isRunning(now) === isRunning(then);
}

/** The steps of launchd in a rollback: first what unloads a job that is not the old one, then, after the files, the old one. */
function planRollback(target: Target, now: Loaded, hasBootedOut: boolean, actor: Actor) {
  const { facts } = target;
  const { loaded: before, domain, job } = facts;
  const service = `${domain}/${job.label}`;
  const wasRunning = isRunning(before);
  const staysOff = facts.disabled === true && before.kind !== "loaded" ? [switchStep(facts, "disable", actor)] : [];
  if (!hasBootedOut) {
    if (now.kind !== "loaded" || now.pid !== undefined || !wasRunning) return { unload: [], load: staysOff };
    const kickstart = runStep("run", [actor.tool("launchctl"), "kickstart", service], "it ran before");
    const expect = { args: now.args, exitTimeoutS: 0, isRunning: true };
    return { unload: [], load: [kickstart, verifyStep(service, expect, "it ran before")] };
  }
  // Where no lima-guard is there to stop a bare job, that step fails, and the job stays.
  const stopWith = isBare(now) ? target.stopWith ?? GUARD_NAME : undefined;
  const unload = now.kind === "loaded" ? unloadSteps({ ...target, stopWith }, now, actor) : [];
  if (before.kind !== "loaded") return { unload, load: staysOff };
  const load = bootstrapSteps(facts, job, wasRunning, actor);
  return { unload, load: whileEnabled(facts, load, true, actor) };
}

/** Where the logs of a job go whose own places are on another volume. */
function logFolderOf(user: User): string {
  return join(user.home, "Library/Logs/lima-guard");
}

/** The options of lima-guard that the job has, or is remembered to have had. */
function keptOptions({ job, memory }: JobFacts): readonly string[] {
  return job.guard === undefined ? memory.options ?? [] : job.guardOptions;
}

/** The options of lima-guard that the job is to have. */
function wantedOptions(facts: JobFacts, { exitTimeoutS, noOnEvent, onEvent, limaHome }: InstallOptions): string[] {
  const kept = keptOptions(facts);
  const asked = {
    "--timeout": exitTimeoutS?.toString(),
    "--on-event": noOnEvent ? "" : onEvent,
    // A job that names the home in its command gets another one there.
    "--lima-home": optionOf(kept, "--lima-home") === undefined ? undefined : limaHome,
  };
  return Object.entries(asked).reduce((all, [flag, value]) => withOption(all, flag, value), [...kept]);
}

/** What install wants of this job, with these options and what is remembered. */
function wantedOf(facts: JobFacts, guard: string, options: InstallOptions): Wanted {
  const { job, limaHome, place, memory, user } = facts;
  const timeout = options.exitTimeoutS ?? timeoutIn(keptOptions(facts));
  const now = job.exitTimeOut ?? 0;
  const isAskedFor = timeout !== undefined &&
    (options.exitTimeoutS !== undefined || job.guard === undefined || now === timeout);
  const exitTimeoutS = isAskedFor ? timeout : Math.max(now, EXIT_TIMEOUT_S);
  const logs = logFolderOf(user);
  const mustMove = (path: string) => !path.startsWith("/") || isUnder(path, limaHome) || path.startsWith("/Volumes/");
  const log = (path: string | undefined, what: string) =>
    path !== undefined && (facts.away.includes(path) || (facts.otherVolume && mustMove(path)))
      ? join(logs, `${place.name}.${what}.log`)
      : undefined;
  return {
    guard,
    guardOptions: wantedOptions(facts, options),
    exitTimeoutS,
    keepAlive: options.keepAlive || (job.guard === undefined && memory.keepAlive === true),
    limaHome: facts.writesLimaHome ? limaHome : undefined,
    moved: {
      WorkingDirectory: facts.otherVolume || facts.away.includes(job.workingDirectory ?? "") ? "/" : undefined,
      StandardOutPath: log(job.stdoutPath, "stdout"),
      StandardErrorPath: log(job.stderrPath, "stderr"),
    },
  };
}

/** What of the world keeps the job from starting the instance: install refuses it, `--check` names it. */
interface WorldFacts {
  /** The program of the command is there and can be run, by the job's user too; else where another one is. */
  readonly tool: "there" | "gone" | "hidden" | "closed";
  readonly otherTool: string | undefined;
  /** Why its program for events cannot be had, or whether it can is not known. */
  readonly event: { kind: "trouble" | "unknown"; why: string; hint: string | undefined } | undefined;
  /** Whether the job's user may read the instance that is there for us. */
  readonly mayRead: Permitted;
  /** Its program is on a volume that nothing waits for. */
  readonly isToolAway: boolean;
}

type Permitted = "yes" | "no" | "unknown";

const AWAY = "is on another volume, which launchd does not wait for";

/** A finding: what is wrong, what could not be found out, or a note; and whether it holds. */
type Finding = readonly [kind: "trouble" | "unknown" | "note", holds: boolean, words: string, topic?: "event"];

function wordsOf(findings: readonly Finding[], kind: Finding[0]): string[] {
  return findings.flatMap(([of, holds, words]) => of === kind && holds ? [words] : []);
}

/** What is wrong with a job in the world, for every user who looks. */
function judgeWorld(facts: JobFacts, world: WorldFacts): Finding[] {
  const { job, place, limaHome, instance, domains, user } = facts;
  const dir = join(limaHome, place.name);
  const other = world.otherTool === undefined ? "" : `; there is one at ${world.otherTool}`;
  const { command: [program = ""] } = job;
  const isWhole = program.startsWith("/");
  return [
    ["trouble", instance === "gone", `the instance is gone: there is no ${dir}/lima.yaml`],
    ["unknown", instance === "volume missing", `${dir} is on a volume that is not mounted now`],
    ["unknown", instance === "hidden", `${dir} may not be looked at by this user`],
    ["trouble", world.mayRead === "no", `${user.name} may not read ${dir}/lima.yaml`],
    ["unknown", world.mayRead === "unknown", `whether ${user.name} may read ${dir}/lima.yaml was not answered`],
    ["trouble", world.tool === "gone", `the program ${program} is gone${other}`],
    ["trouble", world.tool === "closed", `${user.name} may not run ${program}`],
    ["trouble", world.isToolAway, `the program ${program} ${AWAY}${other}`],
    ["unknown", world.tool === "hidden" && isWhole, `the program ${program} may not be looked at by this user`],
    ["unknown", world.tool === "hidden" && !isWhole, `where launchd finds the program ${program} is not known`],
    [world.event?.kind ?? "note", world.event !== undefined, `--on-event: ${world.event?.why}`, "event"],
    ["trouble", domains.length > 1, `the job is loaded twice: in ${domains.join(" and in ")}`],
  ];
}

type GuardAnswer =
  | { readonly kind: "version"; readonly version: string; readonly running: string | undefined }
  | { readonly kind: "proven by its job" | "not asked" }
  | { readonly kind: "trouble"; readonly why: string };

function judgeCheck(facts: JobFacts, guard: GuardAnswer | undefined, world: WorldFacts, wantedS: number | undefined) {
  const { job, place, loaded, otherVolume, fileTrouble } = facts;
  const isWrapped = job.guard !== undefined;
  const [away] = facts.away;
  const isElsewhere = otherVolume && job.workingDirectory !== undefined && job.workingDirectory !== "/";
  const keepAlive =
    "KeepAlive {SuccessfulExit: true} starts the instance again after a requested stop, and not after a crash";
  const version = guard?.kind === "version" ? guard.version : VERSION;
  // What was asked for, or what a guest may need.
  const isAskedFor = timeoutIn(job.guardOptions) === job.grantedS;
  const needed = wantedS ?? (isAskedFor ? Math.min(job.grantedS, EXIT_TIMEOUT_S) : EXIT_TIMEOUT_S);
  const found: Finding[] = [
    ...judgeWorld(facts, world),
    ...[...facts.notes, ...job.remarks].map((words): Finding => ["note", true, words]),
    ["trouble", !isWrapped, `the plist does not run lima-guard (${writerOf(job)})`],
    ["trouble", isWrapped && guard?.kind === "trouble", guard?.kind === "trouble" ? guard.why : ""],
    ["unknown", guard?.kind === "not asked", `${job.guard} was not asked: only the job's user and root may run it`],
    ["note", version !== VERSION, `${job.guard} is version ${version}, this is ${VERSION}`],
    ...judgeTimeouts(job, needed),
    ["trouble", isWrapped && restartsOnSuccess(job.keepAlive), keepAlive],
    ["note", !job.startsByItself, "nothing starts it at boot or login: it has neither RunAtLoad nor KeepAlive"],
    ["trouble", fileTrouble !== undefined, `${place.file}: ${fileTrouble?.why}`],
    ...judgeLoaded(facts, needed),
    ["trouble", isElsewhere, "it is on another volume: launchd cannot start lima-guard before that is mounted"],
    ["trouble", away !== undefined && !isElsewhere, `${away} ${AWAY}`],
  ];
  const isOff = isWrapped && (facts.disabled === true || loaded.kind === "absent");
  const of = (kind: Finding[0]) => wordsOf(found, kind);
  return { troubles: of("trouble"), unknown: of("unknown"), notes: of("note"), isOff };
}

function judgeTimeouts({ guardOptions, grantedS: inFile }: LaunchdJob, needed: number): Finding[] {
  const timeout = timeoutIn(guardOptions) ?? NaN;
  const isAskedFor = timeout === inFile;
  const asked = `a stop has ${inFile} s, as asked for; a guest may need ${EXIT_TIMEOUT_S}`;
  const short = `--timeout ${timeout} in the plist leaves a stop ${timeout} s, of ${needed} s`;
  return [
    ["trouble", inFile < needed, `the plist grants ${inFile} s for a stop, of ${needed} s`],
    ["note", isAskedFor && inFile < EXIT_TIMEOUT_S, asked],
    ["trouble", !isAskedFor && timeout < needed, short],
  ];
}

/** Whether launchd has tried to start the job in vain. */
function isNotStarted(loaded: Loaded): boolean {
  return loaded.kind === "loaded" && loaded.pid === undefined && loaded.lastExit === EX_CONFIG;
}

/** Whether launchd has read the job from another file. */
function isFromElsewhere({ file, target }: JobPlace, path: string | undefined): boolean {
  return path !== undefined && path !== file && path !== target;
}

const UNREAD = "launchd reads no job from there: only *.plist in its own folders";
const UNSAID = "launchctl print-disabled did not say whether the job is disabled";

function judgeLoaded(facts: JobFacts, needed: number): Finding[] {
  const { job, loaded, disabled, place, isBootedOut, isLeftEnabled } = facts;
  const { grantedS: inFile } = job;
  const isAbsent = loaded.kind === "absent" && !isBootedOut;
  const isUnread = isAbsent && place.kind === "file";
  const left = "an install has booted the job out, and has not loaded it again: it was interrupted, or still runs";
  const next = disabled ? "nothing starts it" : "it starts at the next boot or login";
  const found: Finding[] = [
    ["unknown", loaded.kind === "unknown", loaded.kind === "unknown" ? loaded.why : ""],
    ["trouble", isUnread, UNREAD],
    ["trouble", isBootedOut, left],
    ["trouble", isLeftEnabled, "the job was disabled, and a run that was interrupted has left it enabled"],
    ["trouble", isAbsent && !isUnread && job.guard === undefined, "the job is not loaded"],
    ["unknown", disabled === undefined, UNSAID],
    ["note", isAbsent && !isUnread && job.guard !== undefined, `the job is not loaded: ${next}`],
    ["note", loaded.kind === "no session", "no user is logged in at the screen: the job is loaded at the next login"],
    ["note", disabled === true, "the job is disabled: launchd does not start it"],
  ];
  if (loaded.kind !== "loaded") return found;
  const { args, exitTimeoutS = NaN, path } = loaded;
  const isWrapped = isGuard(lookThroughShell(args) ?? args);
  const isSame = isWrapped && isEqual(args, job.args);
  const inForce = `launchd has an exit timeout of ${exitTimeoutS} s in force`;
  const isShort = exitTimeoutS < Math.min(needed, inFile);
  const isStarted = isSame && loaded.startsByItself && !job.startsByItself;
  return [
    ...found,
    ["trouble", !isWrapped, "the loaded job does not run lima-guard"],
    ["trouble", isWrapped && !isSame, "the loaded job is not the one in the plist"],
    ["trouble", isSame && isShort, `${inForce}, of ${needed} s`],
    ["trouble", isSame && !isShort && exitTimeoutS > inFile, `${inForce}: the plist was changed since`],
    ["trouble", isStarted, "launchd starts it by itself, and the plist no more"],
    ["trouble", isFromElsewhere(place, path), `launchd has loaded the job from ${path}`],
    ["trouble", loaded.isEnding, "the job is ending, and will not be loaded then"],
    ["trouble", isNotStarted(loaded), `launchd could not start it: last exit code ${EX_CONFIG}: EX_CONFIG`],
    ["note", loaded.pid === undefined, "the job does not run now"],
  ];
}

function writerOf({ label, tool }: LaunchdJob): string {
  if (label.startsWith("homebrew.mxcl.")) return "`brew services start|restart` writes it again";
  if (/^org\.(nix-community|nixos)\./.test(label)) return "Nix writes it again at each switch";
  return tool === "limactl" ? "`limactl autostart enable` writes it again" : "another program has written it";
}

// ────────────────────────────────────────────────────────────────────────────────────────── words ──

/** What became of one job: the document that `--json` prints, field by field. */
interface JobReport {
  readonly name: string;
  readonly state:
    | "guarded"
    | "guarded, off"
    | "not guarded"
    | "not asked"
    | "not tried"
    | "refused"
    | "rolled back"
    | "broken"
    | "unknown"
    | "missing";
  readonly status: number;
  readonly changed: boolean;
  readonly stage: null;
  readonly seconds: Readonly<Record<string, number>>;
  readonly steps: readonly Pick<InstallStep, "kind" | "what" | "because" | "outcome">[];
  readonly blockers: readonly { readonly what: string; readonly because: string; readonly hint?: string | undefined }[];
  readonly notes: readonly { readonly what: string; readonly because: string }[];
  readonly changes: Rewritten["changes"];
  readonly plist: string | null;
  /** Its version, the one that was in place before this run, and (`--check`) the one that runs. */
  readonly guard: { path: string; version: string | null; previous: string | null; running: string | null } | null;
  /** The result in one line, and the diff, for people. */
  readonly summary: string;
  readonly diff: string;
}

function jobReport(
  name: string,
  state: JobReport["state"],
  status: number,
  summary: string,
  more: Partial<JobReport> = {},
): JobReport {
  const empty = { steps: [], blockers: [], notes: [], changes: [], plist: null, guard: null, diff: "", seconds: {} };
  return { name, state, status, changed: false, stage: null, summary, ...empty, ...more };
}

/** The report of a job that was not changed: why, and what to do. */
function blocked(name: string, state: JobReport["state"], status: number, because: string, hint?: string): JobReport {
  return jobReport(name, state, status, state, { blockers: [{ what: name, because, hint }] });
}

function refusedReports(jobs: readonly { readonly name: string }[], error: unknown): JobReport[] {
  return jobs.map(({ name }) => refusedReport(name, error));
}

/** A refusal as report. An error that is none is reported for this job; the other jobs are served all the same. */
function refusedReport(name: string, error: unknown, file = "FILE"): JobReport {
  if (!(error instanceof Refusal)) {
    const because = `internal error: please report it: ${error instanceof Error ? error.stack : error}`;
    return blocked(name, "unknown", EXIT.failed, because);
  }
  const { message, status } = error;
  const state = status === EXIT.noInstance ? "missing" : status === EXIT.tryAgain ? "unknown" : "refused";
  const shown = status === EXIT.done ? "not tried" : state;
  return blocked(name, shown, status, message, error.hintFor(file));
}

function formatJobs(reports: readonly JobReport[], isDry: boolean): string {
  return reports.flatMap((r) => [
    `${r.name}: ${r.summary}\n`,
    ...isDry ? [r.diff, ...r.steps.map((s) => `  would ${stepInWords(s)}\n`)] : [],
    ...r.blockers.map((b) => `  ${b.what}: ${b.because}${b.hint === undefined ? "" : ` (hint: ${b.hint})`}\n`),
    ...r.notes.map((n) => `  note: ${n.because}\n`),
  ]).join("");
}

/** The one document of a run. `blockers` holds what is wrong with the run itself: its arguments, its folders. */
function jobsToJson(role: string, reports: readonly JobReport[], more: Record<string, unknown> = {}): string {
  const instances = reports.map(({ summary: _, diff: __, ...fields }) => fields);
  const changed = reports.some((r) => r.changed);
  return `${JSON.stringify({ version: 1, role, changed, ...more, instances }, null, 2)}\n`;
}

/** A step in words: what a dry run shows, and what is said before it is done. */
function stepInWords({ what, because, outcome }: Pick<InstallStep, "what" | "because" | "outcome">): string {
  return `${what}  (${because})${outcome === undefined ? "" : `: ${outcome}`}`;
}

/** Our own command line for these jobs, as it is typed or handed over. Paths are absolute already. */
function commandWords(options: InstallOptions, names: readonly string[], program: readonly string[]): string[] {
  const words = INSTALL_OPTIONS.flatMap(({ flag }) => {
    const value = options[keyOf(flag)];
    if (value === undefined || value === false) return [];
    return value === true ? [`--${flag}`] : [`--${flag}`, String(value)];
  });
  return [...program, `--${options.role}`, ...words, ...names];
}

// ─────────────────────────────────────────────────────────────────────────────────────── the host ──

type Shared = "os" | "uid" | "wallMs" | "clockMs" | "pause" | "realPath" | "list" | "writeTrouble";

export interface InstallHost extends Pick<Host, Shared | "stdout" | "stderr"> {
  readonly arch: string;
  readonly canAsk: boolean;
  readonly limits: Readonly<typeof INSTALL_LIMITS>;
  readonly folders: {
    readonly daemons: string;
    /** Where root puts guards: the first that only root can change. */
    readonly guards: readonly string[];
    /** A folder on each of the boot volumes. */
    readonly boot: readonly string[];
    /** Root's own, for its lock and for what is signed. */
    readonly own: string;
    /** Where what was done is logged: root's, or this user's. */
    readonly log: string;
    /** Where another limactl may be. */
    readonly programs: readonly string[];
  };
  /** This program, where it is a compiled one; else the folder of the script. */
  readonly self: { readonly binary?: string; readonly folder?: string };
  /** The first four bytes of what counts as a compiled program here. */
  readonly magic: readonly string[];
  tool(name: Tool): string;
  /** The caller's environment, as it was before our own was set. */
  env(name: string): string | undefined;
  /** Sets umask, working directory and environment: first thing in every process. */
  settle(): void;
  absolute(path: string): string;

  stat(path: string): Looked;
  /** A regular file's bytes, at most so many; undefined where it is none, or may not be read. Never waits. */
  read(path: string, most: number): Uint8Array | undefined;
  /** Makes a file that must not be there yet: mode and group come with the descriptor; on the disk when this returns. */
  create(path: string, bytes: Uint8Array, mode: number, gid: number): void;
  /** Adds to a regular file of this user, which is made where it is missing; never through a link. */
  append(path: string, text: string): void;
  rename(from: string, to: string): void;
  link(from: string, to: string): void;
  remove(path: string): void;
  makeFolder(path: string, mode: number): void;
  /** Waits until what a folder holds is on the disk. */
  sync(folder: string): void;
  /** The lock of all installs of this user, in his own folder; or the PID that has it. */
  lock(folder: string): { close(): void } | { pid: string };
  random(): string;

  alive(pid: number): boolean;
  /** Runs a command to its end, or kills it and its children at the limit. `words`: printed before. */
  run(argv: Argv, options: { readonly limitMs: number; readonly words?: string }): Promise<Answer>;
  /** Runs a command with the terminal; its stdout is passed on as it comes, or only returned. */
  handOver(argv: Argv, passesOn: boolean): Promise<{ code: number; stdout: string }>;
  confirm(question: string): Promise<boolean>;
  progress(text: string): { finish(): void };
  compile(folder: string): Promise<string | Answer>;
  onSignal(take: () => void): () => void;
  plistReader(): Promise<PlistReader>;
  unifiedDiff(path: string, before: string, after: string): Promise<string>;
}

/** What one run looks at once: the host, its options, and what has been placed already. */
interface InstallRun {
  readonly host: InstallHost;
  readonly options: InstallOptions;
  readonly actor: Actor;
  /** The guards that this run has put in place and heard, by path and user. */
  readonly placed: Set<string>;
  readonly sources: Map<string, Uint8Array>;
  /** The plists and jobs that run no lima-guard any more, and the logs that are gone, once what is planned is done. */
  readonly leaving: Set<string>;
}

/** The answer of one of Apple's tools that only looks, within the limit of a command. */
function askTool({ host }: Pick<InstallRun, "host">, tool: Tool, ...args: string[]): Promise<Answer> {
  return host.run([host.tool(tool), ...args], { limitMs: host.limits.commandMs });
}

/** The answer of a command as this user; undefined where we may not be that user. */
async function askAsUser({ host, actor }: InstallRun, user: User, argv: Argv, limitMs = host.limits.commandMs) {
  const whole = asUser(actor, user.uid, argv);
  return whole && await host.run(whole, { limitMs });
}

/** Does something that may take long, and shows a person that it does. */
async function withProgress<T>({ host }: Pick<InstallRun, "host">, text: string, work: () => Promise<T>): Promise<T> {
  const progress = host.progress(text);
  try {
    return await work();
  } finally {
    progress.finish();
  }
}

function say(run: InstallRun, text: string): void {
  run.host.stderr(`lima-guard: ${text}\n`);
}

// ──────────────────────────────────────────────────────────────────────────────────────── looking ──

/** The file of an instance's job: the one that is named, else the one in launchd's folders that starts the instance. */
async function findJobPlace(run: InstallRun, name: string): Promise<JobPlace> {
  const { host, options } = run;
  if (options.plist !== undefined) return await jobPlaceOf(run, name, options.plist);
  const every = await candidates(run);
  const sudo = (file: string) =>
    host.uid !== 0 && dirname(file).startsWith(dirname(host.folders.daemons)) ? "sudo " : "";
  const all = every.filter((c) => isStartedBy(c, name, c.file, sudo(c.file)));
  const mine = all.filter((c) => !c.isLeft && !c.isOthers);
  const found = mine.length > 0 ? mine : all.filter((c) => !c.isLeft);
  if (found.length > 1) {
    const hint = secondJobHint(name, found.map((c) => c.file));
    const starts = found.some((c) => c.isDaemon !== found[0]?.isDaemon) ? " at boot and at login" : " twice";
    throw new Refusal(`Cannot choose: ${name} starts${starts}: ${found.map((c) => c.file).join(" and ")}`, hint);
  }
  const unread = every.filter((c) => c.instance === undefined && c.unread === "").map((c) => c.file);
  const isChosen = all.some((c) => !c.isLeft && !found.includes(c));
  if (found[0]) return { ...await jobPlaceOf(run, name, found[0].file), unread, isChosen };
  const lima = join(host.folders.daemons, `${DAEMON_LABEL}${name}.plist`);
  if (isThere(host.stat(lima))) return await jobPlaceOf(run, name, lima);
  if (all[0]) {
    const file = all[0].file.slice(0, -BACKUP_SUFFIX.length);
    return { ...await jobPlaceOf(run, name, all[0].file), file, beside: file };
  }
  await refuseLeftLoaded(run, name);
  const hint = host.uid === 0
    ? `sudo -H -u USER lima-guard --${options.role} ${name} for a login agent`
    : /^colima(-|$)/.test(name)
    ? "brew services start colima"
    : `limactl autostart enable ${name}`;
  const why = `Cannot find a job of ${name}: no plist runs it`;
  throw new Refusal(why, `${hint}; --plist FILE names another one`, EXIT.noInstance);
}

/** What ends a loaded job: where bootout would cut the guest of a bare limactl off, its user stops the instance first. */
async function unloadHint(run: InstallRun, service: string, loaded: Loaded, name: string, known?: string) {
  const { host } = run;
  const isSystem = service.startsWith("system/");
  const bootout = `${isSystem && host.uid !== 0 ? "sudo " : ""}launchctl bootout ${service}`;
  if (loaded.kind !== "loaded" || !isBare(loaded)) return bootout;
  const user = await userOf(run, isSystem ? loaded.userName ?? "root" : String(host.uid));
  const { HOME, LIMA_HOME } = loaded.environment ?? {};
  const sudo = user.uid === host.uid ? [] : ["sudo", "-H", "-u", user.name];
  const home = known ?? (LIMA_HOME || join(HOME || user.home, ".lima"));
  return `${[...sudo, "lima-guard", "--stop", "--lima-home", home, name].map(quote).join(" ")} && ${bootout}`;
}

function unsaid(why: string, hint = "run this again"): Refusal {
  return new Refusal(`Cannot tell what launchd has: ${why}`, hint, EXIT.tryAgain);
}

/** Refused where launchd has a job under Lima's labels, or may have it, and no file is left of it. */
async function refuseLeftLoaded(run: InstallRun, name: string): Promise<void> {
  const { host } = run;
  for (const domain of ["system", ...loginDomains(host.uid)]) {
    const left = `${domain}/${domain === "system" ? DAEMON_LABEL : AGENT_LABEL}${name}`;
    const loaded = await askLoaded(run, left);
    if (loaded.kind === "unknown") throw unsaid(loaded.why);
    if (loaded.kind !== "loaded") continue;
    const why = `Cannot find a job of ${name}: ${left} is loaded, and its plist is gone`;
    throw new Refusal(why, await unloadHint(run, left, loaded, name));
  }
}

/** Every plist that starts an instance, for an uninstall also a backup whose plist is gone. Root sees daemons only. */
async function candidates(run: InstallRun) {
  const { host } = run;
  const { daemons } = host.folders;
  // Those of all users are root's.
  const folders = [{ folder: daemons, isDaemon: true }, { folder: join(dirname(daemons), AGENTS), isDaemon: false }];
  const me = host.os === "darwin" && host.uid !== 0 ? await userOf(run, String(host.uid)) : undefined;
  if (me) folders.push({ folder: join(me.home, "Library", AGENTS), isDaemon: false });
  const parse = await host.plistReader();
  return folders.flatMap(({ folder, isDaemon }) => {
    const names = namesIn(host, folder).sort();
    return names.flatMap((n) => {
      const isLeft = run.options.role === "uninstall" && !names.includes(basename(n, BACKUP_SUFFIX));
      const file = join(folder, n);
      const started = isLeft || n.endsWith(".plist") ? startedIn(run, file, parse) : undefined;
      if (!started || (started.instance ?? (isLeft ? undefined : started.unread)) === undefined) return [];
      const { userName } = started;
      const isOthers = me !== undefined && userName !== undefined && userName !== me.name &&
        userName !== String(me.uid);
      return [{ file, isDaemon, isLeft, isOthers, ...started }];
    });
  });
}

/** The names in a folder; none where it is not there. */
function namesIn(host: InstallHost, folder: string): string[] {
  const names = host.list(folder);
  if (names.ok || names.trouble === "absent") return names.ok ?? [];
  const status = names.trouble === "denied" ? EXIT.denied : EXIT.tryAgain;
  throw new Refusal(`Cannot list ${folder}: ${names.why}`, `ls -ld ${quote(folder)}`, status);
}

/** What a plist in one of launchd's folders starts. Root opens nothing that another user could have changed. */
function startedIn({ host }: InstallRun, file: string, parse: PlistReader): Started {
  const target = host.realPath(file).ok ?? file;
  const isSafe = host.uid !== 0 || checkPathOwners(pathComponents(host, target).way, ONLY_ROOT).why === undefined;
  return startedBy(file, isSafe ? host.read(target, PLIST_LIMIT_BYTES + 1) : undefined, parse);
}

/** Whether nothing is to be changed. */
function isLooking({ role, dryRun, print }: InstallOptions): boolean {
  return role === "check" || dryRun || print;
}

/** The name that launchd has for a folder of login agents, its owner's or that of all users; undefined where it is none. */
async function agentsFolder(run: InstallRun, folder: string): Promise<string | undefined> {
  const { host } = run;
  if (host.os !== "darwin") return folder.endsWith(`/Library/${AGENTS}`) ? folder : undefined;
  const owners = [folder, dirname(dirname(folder))].map((path) => host.stat(path));
  const uids = new Set(owners.flatMap((look) => isThere(look) && look.uid !== 0 ? [look.uid] : []));
  const known = [join(dirname(host.folders.daemons), AGENTS)];
  for (const uid of uids) known.push(join((await userOf(run, String(uid))).home, "Library", AGENTS));
  return known.find((path) => isSameFolder(host, path, folder));
}

/** Also where a folder has two names and no link leads from one to the other, as on the Data volume. */
function isSameFolder(host: InstallHost, ...paths: [string, string]): boolean {
  const [a = "absent", b = "absent"] = paths.map((path) => host.stat(host.realPath(path).ok ?? path));
  return isThere(a) && isThere(b) && a.dev === b.dev && a.ino === b.ino;
}

async function jobPlaceOf(run: InstallRun, name: string, named: string): Promise<JobPlace> {
  const { host, options } = run;
  const target = host.realPath(named).ok;
  if (target === undefined) {
    const status = host.stat(named) === "denied" ? EXIT.denied : EXIT.noInstance;
    throw new Refusal(`Cannot find ${named}`, `ls -l ${quote(named)}`, status);
  }
  // The resolved folder decides, never the name as it was typed.
  const folder = host.realPath(dirname(named)).ok ?? dirname(named);
  const isRead = /\.plist(\.before-lima-guard)?$/.test(named);
  const daemons = host.realPath(host.folders.daemons).ok ?? host.folders.daemons;
  const isAmong = isSameFolder(host, folder, daemons);
  const isDaemon = isRead && (isAmong || isSameFolder(host, dirname(target), daemons));
  const agents = isRead ? await agentsFolder(run, folder) : undefined;
  const isAgent = agents !== undefined;
  const kind = isDaemon ? "daemon" : isAgent ? "agent" : "file";
  if (kind === "file" && !options.noReload && !isLooking(options)) {
    const hint = "--no-reload changes the file only";
    throw new Refusal(`Cannot load ${named}: ${UNREAD}`, hint);
  }
  const owned = host.stat(isAgent ? host.realPath(dirname(dirname(agents))).ok ?? folder : target);
  if (!isThere(owned)) throw new Refusal(`Cannot read ${named}`, `ls -l ${quote(named)}`, EXIT.noInstance);
  const changer = isDaemon ? 0 : owned.uid;
  const file = join(agents ?? (isAmong ? daemons : folder), basename(named));
  const own = host.realPath(file).ok ?? target;
  return { name, kind, file, target: own, beside: own, changer, unread: [], isChosen: false };
}

/** Every file, folder and link on the way to a path, as far as it can be seen. */
export function pathComponents(host: Pick<InstallHost, "stat">, path: string) {
  const way: FileLook[] = [];
  let todo = path.split("/").filter((part) => part !== "");
  let at = "/";
  const root = host.stat("/");
  if (isThere(root)) way.push(root);
  for (let links = 0; todo.length > 0;) {
    const [part = "", ...rest] = todo;
    todo = rest;
    if (part === ".") continue;
    const next = part === ".." ? dirname(at) : join(at, part);
    const look = host.stat(next);
    if (!isThere(look)) {
      return { way, missing: [next, ...todo.map((_, i) => join(next, ...todo.slice(0, i + 1)))], look };
    }
    way.push(look);
    if (look.kind !== "link") {
      at = next;
      continue;
    }
    if (++links > 40) throw new Refusal(`Cannot follow ${path}: too many links`, `ls -l ${quote(path)}`);
    const { target: to = "" } = look;
    if (to.startsWith("/")) at = "/";
    todo = [...to.split("/").filter((p) => p !== ""), ...todo];
  }
  return { way, missing: [], look: way.at(-1) ?? "absent" as const };
}

function isOnBootVolume(host: InstallHost, { dev }: FileLook): boolean {
  return host.folders.boot.map((folder) => host.stat(folder)).some((top) => isThere(top) && top.dev === dev);
}

/** Judges the whole way to a path: owners, modes, access control lists, and its volume. */
async function judgePath(run: InstallRun, path: string, trust: Trust, name?: string): Promise<PathVerdict> {
  const { host } = run;
  const { way, look } = pathComponents(host, path);
  const verdict = checkPathOwners(way, trust);
  if (verdict.why !== undefined) return verdict;
  const hint = `ls -led ${quote(path)}`;
  if (look === "denied") return { ...verdict, why: `${path} may not be looked at by this user`, hint };
  const away = way.find((l) => l.kind !== "link" && !isOnBootVolume(host, l));
  const bad = (why: string) => ({ ...verdict, why, hint });
  if (away) return bad(`${away.path} is not on the boot volume: it is not there at boot, and its owners may not count`);
  // However the path is spelt: by what is on the way.
  const isOnWay = (folder: string) => way.some((l) => isUnder(l.path.replace(DATA_VOLUME, ""), folder));
  const emptied = trust.purpose === "copy" ? undefined : EMPTIED.find(isOnWay);
  if (emptied !== undefined) return bad(`${emptied} is emptied at boot`);
  const folders = [...new Set(way.filter((l) => l.kind !== "link").map((l) => l.path))];
  const listed = await askTool(run, "ls", "-lde", ...folders);
  // By their names: that of the one user besides root, where there is one.
  const own = trust.uids.find((uid) => uid !== 0);
  const owner = own === undefined ? "root" : name ?? (await userOf(run, String(own))).name;
  const names = ["user:root", `user:${owner}`, ...trust.admins === "may" ? ["group:admin", "group:wheel"] : []];
  if (listed.code !== 0) {
    throw new Refusal(`Cannot look at the access control lists of ${path}: ${inWords(listed)}`, hint, EXIT.tryAgain);
  }
  const entry = readAcl(listed.stdout, names);
  if (entry === undefined) return verdict;
  const why = `${path} has an access control list: ${entry}`;
  return { ...verdict, why, hint: ["ls", "-led", ...folders].map(quote).join(" ") };
}

async function userOf(run: Pick<InstallRun, "host">, who: string): Promise<User> {
  const answer = await askTool(run, "id", "-P", who);
  const user = answer.code === 0 ? readUser(answer.stdout) : undefined;
  if (user) return user;
  throw new Refusal(`Cannot find user ${who}: ${inWords(answer)}`, `id -P ${who}`, EXIT.tryAgain);
}

/** A user's own folders are those of his account: HOME may be another user's, or empty. */
async function inOwnFolders(host: InstallHost): Promise<InstallHost> {
  if (host.os !== "darwin" || host.uid === 0) return host;
  const { home } = await userOf({ host }, String(host.uid));
  return { ...host, folders: { ...host.folders, own: home, log: join(home, "Library/Logs") } };
}

/** The user the job runs as. Lima refuses to run as root, so no job may. */
async function jobUser(run: InstallRun, place: JobPlace, look: FileLook, job: LaunchdJob): Promise<User> {
  const { host } = run;
  // launchd reads UserName in a daemon's plist; one that lies elsewhere is to become one.
  const isAgent = place.kind === "agent" || (place.kind === "file" && job.userName === undefined);
  const who = isAgent ? String(place.changer) : job.userName;
  if (!isAgent && (who === undefined || who === "root" || who === "0")) {
    const change = who === undefined ? "-insert" : "-replace";
    const hint = job.label.startsWith(DAEMON_LABEL)
      ? `limactl autostart enable ${place.name} --condition=boot writes one with UserName`
      : `sudo plutil ${change} UserName -string USER ${quote(place.target)}`;
    throw new Refusal(`Cannot wrap ${place.file}: it would run as root (no UserName), and Lima refuses that`, hint);
  }
  if (place.kind === "agent" && place.changer === 0) {
    const why = "its folder belongs to root, and a login agent that starts an instance is of one user";
    throw new Refusal(`Cannot wrap ${place.file}: ${why}`, `ls -ld ${quote(dirname(place.file))}`);
  }
  if (host.os === "darwin") return await userOf(run, who ?? "");
  // Off a Mac the Mac's users are not known; their homes have a fixed place.
  const home = isAgent ? /^\/Users\/[^/]+/.exec(job.workingDirectory ?? "")?.[0] : undefined;
  return { name: who ?? "", uid: look.uid, gid: look.gid, home: home ?? `/Users/${who}` };
}

/** Why others than its owner could change the plist, by its folders or by itself; off a Mac by itself. */
async function fileTroubleOf(run: InstallRun, { kind, file, target, changer }: JobPlace, look: FileLook) {
  const onMac = run.host.os === "darwin";
  const folder = onMac && kind === "agent" ? pathComponents(run.host, dirname(file)).way.at(-1) : undefined;
  const others = `its folder belongs to user ${folder?.uid}, and it is a login agent of user ${changer}`;
  if (folder && folder.uid !== changer) return { why: others, hint: `sudo chown ${changer} ${quote(folder.path)}` };
  const verdict = onMac ? await judgePath(run, file, trustOf(changer, "run")) : { why: undefined, hint: undefined };
  const cure = changer === 0 ? `sudo chown root:wheel ${quote(target)}; sudo chmod 0644 ${quote(target)}` : undefined;
  const foreign = `it belongs to user ${look.uid}, not to user ${changer}, and launchd refuses it (122)`;
  const open = "another user can write it, and launchd refuses it (122)";
  if (look.uid !== changer) return { why: foreign, hint: cure ?? `sudo chown ${changer} ${quote(target)}` };
  if (verdict.why !== undefined) return { why: verdict.why, hint: verdict.hint };
  return (look.mode & 0o022) === 0 ? undefined : { why: open, hint: cure ?? `chmod go-w ${quote(target)}` };
}

/** The plist's bytes; refused where others than its owner could change them, except by a check of what is not root's. */
async function readJobFile(run: InstallRun, place: JobPlace) {
  const { host, options } = run;
  const look = host.stat(place.target);
  const hint = `ls -l ${quote(place.target)}`;
  if (!isThere(look) || look.kind !== "file") throw new Refusal(`Cannot read ${place.target}: it is no file`, hint);
  if (look.size > PLIST_LIMIT_BYTES) {
    throw new Refusal(`Cannot read the plist: it has ${look.size} bytes, more than ${PLIST_LIMIT_BYTES}`, hint);
  }
  const fileTrouble = await fileTroubleOf(run, place, look);
  if (fileTrouble && host.os === "darwin" && (options.role !== "check" || place.changer === 0)) {
    throw new Refusal(`Cannot take ${place.file}: ${fileTrouble.why}`, fileTrouble.hint);
  }
  const bytes = host.read(place.target, PLIST_LIMIT_BYTES + 1);
  if (!bytes) throw new Refusal(`Cannot read ${place.target}: its mode does not permit it`, hint, EXIT.denied);
  return { look, bytes, fileTrouble };
}

const AT_LOGOUT = "a login agent ends at logout; a headless Mac wants a daemon";

/** Lima's jobs have the names of their files; one with another name has been edited. */
function refuseOtherLabel({ file, name }: JobPlace, { label }: LaunchdJob): void {
  if (!label.startsWith("io.lima-vm.") || `${label}.plist` === basename(file)) return;
  throw new Refusal(`Cannot take ${file}: its Label is ${JSON.stringify(label)}`, `limactl autostart enable ${name}`);
}

/** All about a job, before anything is decided. Changes nothing. */
async function lookAtJob(run: InstallRun, place: JobPlace): Promise<JobFacts> {
  const { host, options } = run;
  const file = await readJobFile(run, place);
  const { look } = file;
  const plist = readPlist(decodePlist(file.bytes, place.file), await host.plistReader());
  const job = readJob(plist, place.name);
  if (options.plist === undefined) refuseOtherLabel(place, job);
  const user = await jobUser(run, place, look, job);
  const memory = await lookAtMemory(run, place, look);
  const launchd = await lookAtLaunchd(run, place, job, user.uid);
  const inherited = launchd.loaded.kind === "loaded" ? launchd.loaded.inherited : {};
  const own = homeOfJob(host, { ...job, environment: { ...inherited, ...job.environment } }, user, place.name);
  const home = limaHomeOf(host, job, own, options);
  // launchd keeps what is enabled over boots, and so does what is noted.
  const isLeftEnabled = memory.bootedOut?.wasDisabled === true && launchd.disabled === false && !options.start &&
    !options.noReload;
  const unread = options.plist === undefined ? await refuseSecondOwner(run, place, user) : [];
  const dir = join(home.path, place.name);
  return {
    place,
    ...file,
    named: host.stat(place.file),
    plist,
    job,
    user,
    ...await lookAtBackup(run, place, look, plist.parse),
    memory,
    limaHome: home.path,
    loadedHome: homeOfJob(host, loadedJob(job, launchd.loaded), user, place.name).path,
    writesLimaHome: home.writes,
    otherVolume: isOtherVolume(host, dir),
    away: awayPaths(host, place, job, user),
    instance: lookAtInstance(host, home.path, dir),
    notes: [...holding([[job.label.startsWith(AGENT_LABEL), AT_LOGOUT]]), ...unread],
    ...launchd,
    isBootedOut: launchd.loaded.kind === "absent" && memory.bootedOut?.boot === run.actor.boot,
    isLeftEnabled,
    disabled: (isLeftEnabled && options.role !== "check") || launchd.disabled,
  };
}

/** What may not be read, in words; refused where another plist starts the instance too. Root sees the agents of the job's user through one child that is he. */
async function refuseSecondOwner(run: InstallRun, place: JobPlace, user: User): Promise<string[]> {
  const { host } = run;
  const note = (file: string) => `${file} may not be read: whether it starts ${place.name} too is not known`;
  const notes = place.unread.map(note);
  if (place.kind !== "daemon" || host.uid !== 0) return notes;
  const parse = await host.plistReader();
  for (const file of await agentsOf(run, user)) {
    const answer = await askAsUser(run, user, [host.tool("head"), "-c", String(PLIST_LIMIT_BYTES), file]);
    if (answer?.late) throw new Refusal(`Cannot read ${file}: ${inWords(answer)}`, "run this again", EXIT.tryAgain);
    const bytes = answer?.code === 0 ? new TextEncoder().encode(answer.stdout) : undefined;
    const started = startedBy(file, bytes, parse);
    if (started.instance === undefined && started.unread === "") notes.push(note(file));
    if (!isStartedBy(started, place.name, file, `sudo -H -u ${quote(user.name)} `)) continue;
    const why = `Cannot choose: ${place.name} starts at boot and at login: ${place.file} and ${file}`;
    throw new Refusal(why, secondJobHint(place.name, [file], ` as ${user.name}`));
  }
  return notes;
}

/** The plists of another user's login agents, as that user sees them; none where the folder or his home is not there. */
async function agentsOf(run: InstallRun, user: User): Promise<string[]> {
  const folder = join(user.home, "Library", AGENTS);
  const names = await namesAsUser(run, user, folder);
  if (names) return names.filter((n) => /^[^/]+\.plist$/.test(n)).map((n) => join(folder, n));
  for (const path of [folder, dirname(folder), ...isOtherVolume(run.host, user.home) ? [] : [user.home]]) {
    const above = await namesAsUser(run, user, dirname(path));
    if (above?.includes(basename(path)) === false) return [];
  }
  const hint = `sudo -H -u ${quote(user.name)} ls -led ${quote(folder)}`;
  throw new Refusal(`Cannot look into ${folder}: ${user.name} could not list it`, hint, EXIT.tryAgain);
}

/** The names in a folder, as this user sees them; undefined where it cannot be listed. */
async function namesAsUser(run: InstallRun, user: User, folder: string): Promise<string[] | undefined> {
  const answer = await askAsUser(run, user, [run.host.tool("ls"), "-A", folder]);
  return answer?.code === 0 ? answer.stdout.split("\n").filter((name) => name !== "") : undefined;
}

/** What to do about a login agent beside another job of the same instance. */
function secondJobHint(name: string, agents: readonly string[], who = ""): string {
  const isLimas = agents.some((file) => basename(file).startsWith(AGENT_LABEL));
  const what = isLimas ? `limactl autostart disable ${name}${who} removes the login agent` : "remove one of them";
  return `${what}; or --plist FILE decides`;
}

/** What a plist starts. `unread`: its bytes as text, where our reader refuses them; empty where they may not be read. */
interface Started {
  readonly instance: string | undefined;
  readonly userName?: Value | undefined;
  readonly unread?: string;
}

/** The instance that a plist starts: by its text, else by its name. */
function startedBy(file: string, bytes: Uint8Array | undefined, parse: PlistReader): Started {
  const own = [DAEMON_LABEL, AGENT_LABEL].find((p) => basename(file).startsWith(p));
  const instance = own && basename(file).slice(own.length).replace(/\.plist(\.before-lima-guard)?$/, "");
  // Words are found in a binary plist and in UTF-16 too.
  const unread = new TextDecoder("latin1").decode(bytes).replaceAll("\0", "");
  if (bytes && !/limactl|colima|lima-guard/.test(unread)) return { instance };
  try {
    const { value } = readPlist(decodePlist(bytes ?? new Uint8Array(), file), parse);
    return { instance: instanceOf(value) ?? instance, userName: value["UserName"] };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { instance, unread };
  }
}

/** Whether a plist starts this instance; refused where it may, and a command makes it one that can be read. */
function isStartedBy({ instance, unread }: Started, name: string, file: string, sudo = ""): boolean {
  const word = name.replace(/^colima-/, "");
  // limactl alone starts `default` where no name is written.
  const may = unread?.includes(word) || (name === "default" && unread?.includes("limactl"));
  if (instance !== undefined || !may) return instance === name;
  const hint = `${sudo}plutil -convert xml1 ${quote(file)}; or --plist FILE decides`;
  const why = `Cannot tell whether ${file} starts ${name} too: it is binary, or no plist that can be read`;
  throw new Refusal(why, hint, EXIT.tryAgain);
}

/** What of a job decides where its instance is. */
type HousedJob =
  & Pick<LaunchdJob, "tool" | "label" | "environment" | "workingDirectory">
  & { readonly guardOptions: readonly string[] };

/** Where the job has its instance: as it says, or as the tool itself would find it; and whether to write it down. */
function homeOfJob(host: InstallHost, job: HousedJob, user: User, name: string) {
  const there = job.environment["LIMA_HOME"];
  const home = job.environment["HOME"] || user.home;
  const named = optionOf(job.guardOptions, "--lima-home");
  if (named) return { path: expandHome(named, home), writes: false };
  if (there) return { path: there, writes: false }; // empty is none, for Lima and for Colima
  if (job.tool === "limactl") {
    const [path, folder = ""] = [join(home, ".lima"), job.workingDirectory];
    // Lima's own plists name the instance there, also those without LIMA_HOME; in any other it is just a folder.
    const isNamed = there === undefined && job.label.startsWith("io.lima-vm.") && folder.startsWith("/") &&
      basename(folder) === name && dirname(folder) !== path;
    // What is in limactl's own place is what it starts.
    const writes = isNamed && pathComponents(host, join(path, name, "lima.yaml")).look === "absent";
    return { path: writes ? dirname(folder) : path, writes };
  }
  const colima = colimaHome(host, job, home);
  return { path: join(colima.path, "_lima"), writes: colima.isSure };
}

/** The same of the job that is loaded. */
function loadedJob(job: LaunchdJob, loaded: Loaded): HousedJob {
  if (loaded.kind !== "loaded") return job;
  const { environment = job.environment, args } = loaded;
  return { ...job, environment, guardOptions: guardWords(lookThroughShell(args) ?? args).options };
}

/** The same as asked. Only an install of one job may ask for another home, and not against the plist. */
function limaHomeOf(host: InstallHost, job: LaunchdJob, own: ReturnType<typeof homeOfJob>, options: InstallOptions) {
  const { limaHome, role, all } = options;
  const resolved = (path: string) => host.realPath(path).ok ?? path.replace(/(?<=.)\/+$/, "");
  if (limaHome === undefined || resolved(own.path) === resolved(limaHome)) return own;
  if (role === "install" && !all && job.environment["LIMA_HOME"] === undefined) {
    return { path: limaHome, writes: optionOf(job.guardOptions, "--lima-home") === undefined };
  }
  const why = `its job uses ${JSON.stringify(own.path)}, not ${JSON.stringify(limaHome)}`;
  // Of all jobs only those of this home are meant.
  const status = all ? EXIT.done : EXIT.failed;
  throw new Refusal(`Cannot tell where the instance is: ${why}`, "leave out --lima-home", status);
}

/** Colima's own order (`config/files.go`). What depends on a folder that cannot be seen is not written down. */
function colimaHome(host: Pick<InstallHost, "stat">, { environment }: HousedJob, home: string) {
  const { COLIMA_HOME: own, XDG_CONFIG_HOME: xdg } = environment;
  const [dot, config] = [join(home, ".colima"), join(home, ".config/colima")];
  const is = (path: string) => host.stat(path) !== "absent";
  const last = xdg ? join(xdg, "colima") : is(config) ? config : dot;
  const path = own && is(own) ? own : is(dot) ? dot : last;
  return { path, isSure: host.stat(path) !== "denied" };
}

/** macOS has two boot volumes, one for the system and one for the rest; whatever is on neither is mounted later. */
function isOtherVolume(host: InstallHost, path: string): boolean {
  const { way, missing } = pathComponents(host, path);
  const deepest = way.findLast(({ kind }) => kind !== "link");
  return missing[0]?.startsWith("/Volumes/") || (deepest !== undefined && !isOnBootVolume(host, deepest));
}

/** The folder and the logs of a job that are on another volume. A login agent has that of its user's home. */
function awayPaths(host: InstallHost, { kind }: JobPlace, job: LaunchdJob, user: User): string[] {
  const { workingDirectory: folder = "/", stdoutPath, stderrPath } = job;
  const volumeOf = (path: string) => pathComponents(host, path).way.findLast((look) => look.kind !== "link")?.dev;
  return [folder, stdoutPath, stderrPath].filter((path): path is string => {
    const whole = path?.startsWith("/") ? path : join(folder, path ?? "/");
    // /dev is there before any job, as a volume of its own.
    return path !== undefined && !isUnder(whole, "/dev") && isOtherVolume(host, whole) &&
      !(kind !== "daemon" && volumeOf(whole) === volumeOf(user.home));
  });
}

/** Gone is only what is missing itself, in a folder that is Lima's: behind a link, or in an empty folder, it may be away. */
function lookAtInstance(host: InstallHost, limaHome: string, dir: string): JobFacts["instance"] {
  const file = join(dir, "lima.yaml");
  const { look } = pathComponents(host, file);
  if (look === "denied") return "hidden";
  if (look !== "absent") return "there";
  const isLinked = [dir, file].map((path) => host.stat(path)).some((own) => isThere(own) && own.kind === "link");
  // The first start of an instance makes it, and nothing removes it.
  const config = pathComponents(host, join(limaHome, "_config")).look;
  // launchd makes the folder of a log on the boot disk, where a volume is still to be mounted.
  const isStub = isThere(config) && config.path.startsWith("/Volumes/") && isOnBootVolume(host, config);
  return isThere(config) && !isStub && !isLinked ? "gone" : "volume missing";
}

/** Whether a file beside the plist can have been written by the same users only as the plist. */
async function isOfSameHands(run: InstallRun, place: JobPlace, plist: FileLook, path: string): Promise<boolean> {
  const { host } = run;
  const look = host.stat(path);
  if (!isThere(look) || look.kind !== "file" || look.uid !== plist.uid || (look.mode & 0o022) !== 0) return false;
  return host.os !== "darwin" || (await judgePath(run, path, trustOf(place.changer, "run"))).why === undefined;
}

/** Only where the same users could have written it as the plist: else it is no backup (why: `badBackup`), and it is kept. */
async function lookAtBackup(run: InstallRun, place: JobPlace, plist: FileLook, parse: PlistReader) {
  const { host } = run;
  const path = place.beside + BACKUP_SUFFIX;
  const look = host.stat(path);
  if (look === "absent") return { backup: undefined, badBackup: undefined };
  const bad = (why: string) => ({ backup: undefined, badBackup: `${path} is not used: ${why}` });
  if (!isThere(look) || look.kind !== "file") return bad("it is no file that can be read");
  if (!await isOfSameHands(run, place, plist, path)) return bad("another user could have written it");
  const bytes = host.read(path, PLIST_LIMIT_BYTES + 1);
  if (!bytes) return bad("its mode does not permit to read it");
  try {
    const read = readPlist(decodePlist(bytes, path), parse);
    // A backup of something else knows nothing of this job.
    if (readJob(read, place.name).guard === undefined) {
      return { backup: { bytes, plist: read, look }, badBackup: undefined };
    }
    return bad("it runs lima-guard itself");
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return bad(error.message);
  }
}

async function lookAtMemory(run: InstallRun, place: JobPlace, plist: FileLook): Promise<Memory> {
  if (run.actor.boot === UNKNOWN_BOOT) {
    throw new Refusal("Cannot tell which boot this is: sysctl did not say", "run this again", EXIT.tryAgain);
  }
  const path = place.beside + MEMORY_SUFFIX;
  const isOurs = await isOfSameHands(run, place, plist, path);
  return readMemory(new TextDecoder().decode(isOurs ? run.host.read(path, PLIST_LIMIT_BYTES) : undefined));
}

/** What launchd has of a job; its path with the links resolved, as all our paths are. */
async function askLoaded(run: InstallRun, service: string): Promise<Loaded> {
  const loaded = readLoaded(await askTool(run, "launchctl", "print", service));
  if (loaded.kind !== "loaded" || loaded.path === undefined) return loaded;
  return { ...loaded, path: run.host.realPath(loaded.path).ok ?? loaded.path };
}

const ABSENT: Loaded = { kind: "absent" };
const NOT_ASKED: Loaded = { kind: "not asked" };

/** Where launchd has the login agents of a user: those that were loaded over ssh are in the second. Root has none. */
const loginDomains = (uid: number) => uid === 0 ? [] : [`gui/${uid}`, `user/${uid}`];

/** What launchd has of a job, and in which domains. */
async function lookAtLaunchd(run: InstallRun, place: JobPlace, { label, isDisabled }: LaunchdJob, uid: number) {
  const { host } = run;
  if (host.os !== "darwin" || place.kind === "file") {
    const domain = place.kind === "agent" ? `gui/${uid}` : "system";
    return { domain, loaded: host.os === "darwin" ? ABSENT : NOT_ASKED, disabled: false, domains: [] };
  }
  const names = place.kind === "daemon" ? ["system"] : loginDomains(uid);
  const fileLabel = basename(place.file, ".plist");
  for (const domain of fileLabel === label ? [] : names) {
    const other = await askLoaded(run, `${domain}/${fileLabel}`);
    if (other.kind === "unknown") throw unsaid(other.why);
    if (other.kind !== "loaded" || (other.path ?? place.file) !== place.file) continue;
    const why = `launchd has it loaded as ${domain}/${fileLabel}, and its Label is ${JSON.stringify(label)} now`;
    throw new Refusal(`Cannot tell the job of ${place.file}: ${why}`, `make its Label ${fileLabel} again`);
  }
  const asked = [];
  for (const domain of names) asked.push({ domain, loaded: await askLoaded(run, `${domain}/${label}`) });
  // Of two the one that runs is the one to keep.
  const found = asked.filter((a) => a.loaded.kind === "loaded")
    .sort((a, b) => Number(isRunning(b.loaded)) - Number(isRunning(a.loaded)));
  // It may run in the domain that gave no answer.
  const unknown = asked.find((a) => a.loaded.kind === "unknown");
  let { domain, loaded } = unknown ?? found[0] ?? asked[0] ?? { domain: "system", loaded: ABSENT };
  if (loaded.kind === "absent" && domain !== "system") {
    const session = await askTool(run, "launchctl", "print", domain);
    if (session.code === NO_SERVICE || NO_SESSION.includes(session.code)) loaded = { kind: "no session" };
  }
  const off = await askTool(run, "launchctl", "print-disabled", domain);
  const isAnswer = off.code === 0 && off.stdout.includes("}");
  const said = isAnswer ? readDisabled(off.stdout, label) ?? isDisabled : undefined;
  const disabled = said ?? (loaded.kind === "no session" ? isDisabled : undefined);
  return { domain, loaded, disabled, domains: found.map((a) => a.domain) };
}

/** What the job's user himself may do with a path; all, where we may not be that user. */
async function permittedTo(run: InstallRun, user: User, flag: "-r" | "-x", path: string): Promise<Permitted> {
  const answer = await askAsUser(run, user, [run.host.tool("test"), flag, path]);
  if (!answer || answer.code === 0) return "yes";
  // It has no words of its own: any are sudo's.
  return answer.code === 1 && answer.stderr === "" ? "no" : "unknown";
}

/** Whether a program is there and can be run, by the job's user too. */
async function lookAtProgram(run: InstallRun, user: User, path: string): Promise<WorldFacts["tool"]> {
  const { look } = pathComponents(run.host, path);
  if (look === "denied") return "hidden";
  if (!isThere(look) || look.kind !== "file" || (look.mode & 0o111) === 0) return "gone";
  const may = await permittedTo(run, user, "-x", path);
  return may === "yes" ? "there" : may === "no" ? "closed" : "hidden";
}

/** The program of the job's command, and what else must be there at the next start. */
async function lookAtWorld(run: InstallRun, facts: JobFacts): Promise<WorldFacts> {
  const { host } = run;
  const { job, user, limaHome, place, instance, loaded } = facts;
  const unseen = { tool: "there", otherTool: undefined, isToolAway: false, event: undefined, mayRead: "yes" } as const;
  if (host.os !== "darwin") return unseen;
  const program = job.command[0] ?? "";
  // What the plist does not say launchd may have from `launchctl config`, and prints of a job that is loaded.
  const ofLaunchd = loaded.kind === "loaded" ? loaded.environment?.["PATH"] : undefined;
  const searched = program.startsWith("/") ? "" : job.environment["PATH"] ?? ofLaunchd;
  const folders = (searched ?? OWN_PATH).split(":");
  const looks: { path: string; tool: WorldFacts["tool"] }[] = [];
  for (const path of folders.map((dir) => join(dir, program))) {
    looks.push({ path, tool: await lookAtProgram(run, user, path) });
  }
  const known = ["there", "closed", "hidden"] as const;
  const tool = known.find((kind) => looks.some((look) => look.tool === kind)) ??
    (searched === undefined ? "hidden" : "gone");
  const found = looks.find((look) => look.tool === "there");
  const isToolAway = found !== undefined && isProgramAway(host, facts, found.path);
  const isMissing = tool === "gone" || isToolAway;
  const others = isMissing ? host.folders.programs.map((folder) => join(folder, basename(program))) : [];
  const isNear = (path: string) => isThere(pathComponents(host, path).look) && !isProgramAway(host, facts, path);
  const otherTool = others.find(isNear);
  // After an uninstall no lima-guard runs it.
  const options = run.options.role === "uninstall" ? [] : wantedOptions(facts, run.options);
  const event = await lookAtEventProgram(run, user, optionOf(options, "--on-event"));
  const config = join(limaHome, place.name, "lima.yaml");
  const mayRead = instance === "there" ? await permittedTo(run, user, "-r", config) : "yes";
  return { tool, otherTool, isToolAway, event, mayRead };
}

/** lima-guard waits for the volume of the instance, and a job of Nix's for the store; a login comes later. */
function isProgramAway(host: InstallHost, { job, limaHome, place }: JobFacts, path: string): boolean {
  const { look } = pathComponents(host, path);
  if (!isThere(look) || place.kind !== "daemon" || job.isBehindShell || isOnBootVolume(host, look)) return false;
  const waited = pathComponents(host, join(limaHome, place.name)).look;
  return !(isThere(waited) && waited.dev === look.dev);
}

async function lookAtEventProgram(run: InstallRun, user: User, path: string | undefined): Promise<WorldFacts["event"]> {
  if (path === undefined) return undefined;
  const found = await lookAtProgram(run, user, path);
  const hint = `ls -led ${quote(path)}`;
  if (found === "hidden") return { kind: "unknown", why: `${path} may not be looked at by this user`, hint };
  if (found === "gone") return { kind: "trouble", why: `${path} is not there, or is no program that can be run`, hint };
  if (found === "closed") return { kind: "trouble", why: `${user.name} may not run ${path}`, hint };
  const { why, hint: more } = await judgePath(run, path, trustOf(user.uid, "run"), user.name);
  return why === undefined ? undefined : { kind: "trouble", why, hint: more };
}

/** The guard that the job is to run, and what must be done to have it there. */
async function lookAtGuard(run: InstallRun, facts: JobFacts): Promise<GuardFacts> {
  const { host, options } = run;
  const chosen = await chooseGuard(run, facts);
  const { path } = chosen;
  const { changer } = facts.place;
  const source = chosen.isPlaced && !run.placed.has(path) ? await guardSource(run, path) : undefined;
  // What another user could have put there is not even read.
  const isSafe = checkPathOwners(pathComponents(host, path).way, trustOf(facts.user.uid, "run")).why === undefined;
  const inPlace = source && isSafe ? bytesOf(run, host.realPath(path).ok) : undefined;
  const isSameFile = source?.bytes !== undefined && inPlace !== undefined && isSameBytes(inPlace, source.bytes);
  const isSame = !source || (isSameFile && options.sign === undefined);
  const trust = isSame ? trustOf(facts.user.uid, "run") : trustOf(changer, "place");
  const { way, missing } = pathComponents(host, isSame ? path : dirname(path));
  const verdict = await judgePath(run, isSame ? path : dirname(path), trust, facts.user.name);
  if (verdict.why !== undefined) throw new Refusal(`Cannot let the job run ${path}: ${verdict.why}`, verdict.hint);
  const warnings = verdict.warnings.map((w) => `${w}: only trust it as far as you trust them`);
  if (isSame) return await guardInPlace(run, facts, { ...chosen, warnings });
  refuseOccupied(host, path, way, changer);
  const there = host.stat(path);
  const previous = isThere(there) ? await versionInPlace(run, path, facts.user) : undefined;
  if (previous !== undefined && compareVersions(VERSION, previous) < 0 && !options.downgrade) {
    throw new Refusal(`Cannot replace ${path}: it is version ${previous}, this is ${VERSION}`, "--downgrade");
  }
  if (!source.bytes) warnings.push(`lima-guard would be compiled now: ${source.from}`);
  const isSigned = !source.bytes || await hasSignature(run, source.from);
  const sign = options.sign ?? (isSigned || host.arch !== "aarch64" ? undefined : "-");
  return {
    path,
    bytes: source.bytes ?? new Uint8Array(),
    version: VERSION,
    previous,
    missing,
    isPlaced: true,
    warnings,
    sign,
    isSigned: isSigned || sign !== undefined,
  };
}

/** A user writes only in what is his, root only in what is root's; and only a file is replaced. */
function refuseOccupied(host: InstallHost, path: string, way: readonly FileLook[], changer: number): void {
  const deepest = way.findLast((look) => look.kind === "directory");
  if (deepest && deepest.uid !== changer) {
    const why = `Cannot put lima-guard into ${dirname(path)}: ${deepest.path} belongs to user ${deepest.uid}`;
    throw new Refusal(why, "--guard-dir ~/.local/libexec", EXIT.denied);
  }
  const there = host.stat(path);
  if (isThere(there) && there.kind !== "file") {
    throw new Refusal(`Cannot put lima-guard at ${path}: there is a ${there.kind}`, `ls -ld ${quote(path)}`);
  }
}

const IN_PLACE = { bytes: undefined, version: undefined, previous: undefined, sign: undefined, missing: [] };

/** Where the guard is to be: as asked, as the job has it, as it was before Lima wrote the plist again, or by default. */
async function chooseGuard(run: InstallRun, facts: JobFacts): Promise<{ path: string; isPlaced: boolean }> {
  const { host, options } = run;
  if (options.guard !== undefined) return { path: options.guard, isPlaced: false };
  if (options.guardDir !== undefined) return { path: join(options.guardDir, GUARD_NAME), isPlaced: true };
  const kept = facts.job.guard ?? facts.memory.guard;
  const { changer } = facts.place;
  // Root's copy, that a user's job runs too, may go with the last job of root's.
  const isLost = changer !== 0 && host.folders.guards.includes(dirname(kept ?? "")) &&
    host.stat(kept ?? "") === "absent";
  if (kept !== undefined && !isLost) {
    return { path: kept, isPlaced: isPlacedByUs(host, kept, facts.user, facts.memory) };
  }
  if (changer !== 0) {
    for (const folder of host.folders.guards) {
      const path = join(folder, GUARD_NAME);
      if (isThere(host.stat(path)) && await versionInPlace(run, path, facts.user) === VERSION) {
        return { path, isPlaced: false };
      }
    }
    return { path: join(ownGuardFolder(facts.user), GUARD_NAME), isPlaced: true };
  }
  let first: PathVerdict | undefined;
  for (const folder of host.folders.guards) {
    const verdict = await judgePath(run, folder, ONLY_ROOT);
    if (verdict.why === undefined) return { path: join(folder, GUARD_NAME), isPlaced: true };
    first ??= verdict;
  }
  throw new Refusal(`Cannot put lima-guard into ${host.folders.guards.join(" or ")}: ${first?.why}`, "--guard-dir DIR");
}

function ownGuardFolder({ home }: User): string {
  return join(home, ".local/libexec");
}

/** Whether an install has put this lima-guard there: as it is remembered, else by its place. */
function isPlacedByUs({ folders }: InstallHost, guard: string, user: User, memory: Memory): boolean {
  if (memory.guard === guard) return memory.isPlaced === true;
  return basename(guard) === GUARD_NAME && [...folders.guards, ownGuardFolder(user)].includes(dirname(guard));
}

/** The version of what is in place, if it is judged to be safe to run, asked as the job's user. */
async function versionInPlace(run: InstallRun, path: string, user: User): Promise<string | undefined> {
  const answer = await askVersion(run, path, user);
  return typeof answer === "object" ? readVersion(answer) : undefined;
}

/** What a lima-guard answers to the job's user; where it is not safe to run: why; undefined where we may not be that user. */
async function askVersion(run: InstallRun, path: string, user: User): Promise<Answer | string | undefined> {
  const { why } = await judgePath(run, path, trustOf(user.uid, "run"), user.name);
  return why ?? await askAsUser(run, user, [path, "--version"], run.host.limits.handshakeMs);
}

async function hasSignature(run: InstallRun, path: string): Promise<boolean> {
  const answer = await askTool(run, "codesign", "--verify", path);
  if (answer.late || answer.code === 127) {
    throw new Refusal(`Cannot verify ${path}: ${inWords(answer)}`, "codesign --verify", EXIT.tryAgain);
  }
  return answer.code === 0;
}

function bytesOf({ host }: Pick<InstallRun, "host">, path: string | undefined): Uint8Array | undefined {
  const look = path === undefined ? "absent" : host.stat(path);
  if (path === undefined || !isThere(look) || look.kind !== "file" || look.size > GUARD_LIMIT_BYTES) return undefined;
  return host.read(path, GUARD_LIMIT_BYTES);
}

/** A job at boot must not depend on Deno's cache, which macOS may purge, or on the network. */
async function guardInPlace(
  run: InstallRun,
  facts: JobFacts,
  chosen: { path: string; isPlaced: boolean; warnings: readonly string[] },
) {
  const { host } = run;
  const { path } = chosen;
  const real = host.realPath(path).ok;
  const bytes = bytesOf(run, real);
  const refusal = (why: string, hint: string) => new Refusal(`Cannot use ${path} as lima-guard: ${why}`, hint);
  const guardDir = facts.place.changer === 0 ? host.folders.guards[0] ?? "" : ownGuardFolder(facts.user);
  const { guard: _, ...options } = run.options;
  const another = commandFor({ ...run, options }, facts, { guardDir });
  if (!bytes || real === undefined) throw refusal("there is no such file that can be read", another);
  const look = host.stat(real);
  if (!isThere(look) || (look.mode & 0o111) === 0) throw refusal("it is not executable", `chmod 0755 ${quote(path)}`);
  if (!isProgram(host, bytes)) {
    const why = "it is no compiled program, and a job at boot cannot wait for Deno's cache or the network";
    throw refusal(why, "deno task compile; --guard dist/lima-guard-…");
  }
  const quarantine = await askTool(run, "xattr", "-p", "com.apple.quarantine", real);
  if (quarantine.code === 0) throw refusal("it is quarantined", `xattr -d com.apple.quarantine ${quote(real)}`);
  const isSigned = await hasSignature(run, path);
  if (!isSigned && host.arch === "aarch64") {
    throw new Refusal(`Cannot use ${path}: its signature is not valid`, `codesign --force --sign - ${quote(path)}`);
  }
  return { ...chosen, ...IN_PLACE, isSigned };
}

/** Mach-O, thin or universal; ELF where this is tried out on Linux. */
function isProgram(host: InstallHost, bytes: Uint8Array): boolean {
  return host.magic.includes([...bytes.subarray(0, 4)].map((n) => n.toString(16).padStart(2, "0")).join(""));
}

/** `bytes` undefined: it would be compiled. */
type GuardSource = { readonly from: string; readonly bytes: Uint8Array | undefined };

/** A compiled guard: this very program, one in `dist`, the one that is in place (undefined), or one compiled now. */
async function guardSource(run: InstallRun, place: string): Promise<GuardSource | undefined> {
  const { host, options } = run;
  const { binary, folder } = host.self;
  const target = `${host.arch}-${host.os === "darwin" ? "apple-darwin" : "unknown-linux-gnu"}`;
  const dist = folder === undefined ? [] : [`dist/lima-guard-${target}`, "dist/lima-guard"].map((f) => join(folder, f));
  for (const from of [...binary === undefined ? [] : [binary], ...dist, place]) {
    const bytes = await sourceBytes(run, from);
    if (bytes) return from === place ? undefined : { from, bytes };
  }
  const hint =
    `where https://dl.deno.land can be reached: deno task compile; then copy dist/lima-guard-${target} here ` +
    `and run it: lima-guard --install …`;
  if (folder === undefined || host.uid === 0) throw new Refusal("Cannot find a compiled lima-guard", hint);
  const from = join(folder, "dist", `lima-guard-${target}`);
  if (options.dryRun || options.print) return { from, bytes: undefined };
  say(run, "compiles lima-guard: this downloads Deno's runtime the first time");
  const compiled = await withProgress(run, "compiles lima-guard", () => host.compile(folder));
  if (typeof compiled !== "string") throw new Refusal(`Cannot compile lima-guard here: ${inWords(compiled)}`, hint);
  const bytes = await sourceBytes(run, compiled);
  if (bytes) return { from: compiled, bytes };
  throw new Refusal("Cannot compile lima-guard here: what came out is no program", hint);
}

/** The bytes of a source, once for many jobs. It is judged as strictly as the place: for root also by who called sudo. */
async function sourceBytes(run: InstallRun, from: string): Promise<Uint8Array | undefined> {
  const { host } = run;
  const real = host.realPath(from).ok;
  if (real === undefined) return undefined;
  const known = run.sources.get(real);
  if (!known) await refuseSource(run, from);
  const bytes = known ?? bytesOf(run, real);
  if (!bytes || !isProgram(host, bytes)) return undefined;
  run.sources.set(real, bytes);
  return bytes;
}

async function refuseSource(run: InstallRun, from: string): Promise<void> {
  const { host } = run;
  if (host.os !== "darwin") return;
  const caller = host.uid === 0 ? Number(host.env("SUDO_UID") ?? 0) : host.uid;
  // Homebrew's folders are open to group admin, whose members may become root anyway.
  const trust: Trust = { uids: [0, caller], admins: "may", purpose: "copy" };
  const name = caller === 0 ? "root" : (await userOf(run, String(caller))).name;
  const { why, hint = "", warnings } = await judgePath(run, from, trust, name);
  // One of them, once.
  const isSaid = run.sources.has(host.realPath(from).ok ?? "");
  for (const warning of isSaid ? [] : warnings.slice(0, 1)) say(run, `copies ${from}, though ${warning}`);
  if (why === undefined) return;
  throw new Refusal(`Cannot copy ${from}: ${why}`, `${hint}; copy it into your home folder, mode 0700`);
}

/** What macOS may have granted to limactl and will not grant to the guard by itself. */
function consentNotes({ place, job, limaHome, user, otherVolume }: JobFacts, guard: string): string[] {
  const personal = ["Desktop", "Documents", "Downloads"].map((folder) => join(user.home, folder));
  const isJudged = otherVolume || limaHome.startsWith("/Volumes/") || personal.some((f) => isUnder(limaHome, f));
  const full = `macOS judges access to ${limaHome} by the program that launchd starts: ` +
    `System Settings > Privacy & Security > Full Disk Access: add ${guard}`;
  const local =
    `if the guest talks to the local network: System Settings > Privacy & Security > Local Network: allow ${guard}`;
  const isAgent = place.kind !== "daemon" && !job.label.startsWith(DAEMON_LABEL);
  return [...isJudged ? [full] : [], ...isAgent ? [local] : []];
}

// ───────────────────────────────────────────────────────────────────────────────────────── acting ──

/** A step that did not do what it is for. `changed`: another program has changed what was looked at. */
class StepFailure extends Refusal {
  constructor(why: string, readonly reason: "failed" | "changed" = "failed") {
    super(why);
  }
}

/** What acting needs to know, and what it finds out. */
class Acting {
  readonly done: InstallStep[] = [];
  readonly notes: string[] = [];
  /** What puts the files back, in the order in which they were changed. */
  readonly undo: (() => void)[] = [];
  /** The same for files that were removed; and for the note of what was booted out, which counts until all is loaded. */
  readonly undoRemoved: (() => void)[] = [];
  readonly undoNoted: (() => void)[] = [];
  /** What is no longer needed once all has gone well, or has been put back. */
  readonly kept: string[] = [];
  /** Folders that go at the end, if they are empty then. */
  readonly emptied: string[] = [];
  /** Newer files of other programs that a rollback has left alone. */
  readonly leftAlone: string[] = [];
  /** The guard's stop, which still cleans up when `bootout` is sent. */
  stopping: Promise<Answer> | undefined;
  version: string | undefined;
  /** How long lima-guard took to start and to say its version. */
  answerMs = 0;
  hasTouchedLaunchd = false;
  hasBootedOut = false;
  isInterrupted = false;
  failure: StepFailure | undefined;
  /** After a failure: all was put back. */
  isBack = true;

  constructor(readonly run: InstallRun, readonly target: Target) {}
}

/** Does the steps in order. Whatever goes wrong, the old guard, file and job are put back. */
async function act(run: InstallRun, target: Target, steps: readonly InstallStep[]): Promise<Acting> {
  const acting = new Acting(run, target);
  const { file } = target.facts.place;
  const silence = run.host.onSignal(() => acting.isInterrupted = true);
  try {
    for (const step of steps) {
      if (acting.isInterrupted) throw new StepFailure("interrupted");
      // Without its plist the job could not be loaded again: it stays as it is.
      const unloads = !target.removesJob && (step.kind === "stop" || step.kind === "bootout");
      if (unloads && !isThere(run.host.stat(file))) throw new StepFailure(`${file} has been removed`, "changed");
      await actStep(acting, step);
    }
  } catch (error) {
    // An internal error must not leave a job half-way either.
    const bug = `internal error: please report it: ${error instanceof Error ? error.stack : error}`;
    const why = error instanceof Refusal ? error.message : bug;
    acting.failure = error instanceof StepFailure ? error : new StepFailure(why);
    say(run, `failed: ${acting.failure.message}: rolls back`);
    await rollBack(acting);
  } finally {
    silence();
    await acting.stopping;
  }
  if (acting.failure === undefined) clearAway(acting, ...acting.kept, ...acting.emptied);
  return acting;
}

/** What is no longer needed goes; nothing is put back for what cannot be removed: that stays, and is a note. */
function clearAway({ run: { host }, notes }: Acting, ...paths: readonly string[]): void {
  for (const path of paths) {
    try {
      const look = host.stat(path);
      const isUsed = isThere(look) && look.kind === "directory" && namesIn(host, path).length > 0;
      if (!isUsed) removeThere(host, path);
    } catch (error) {
      notes.push(`${path} stays: ${error instanceof Error ? error.message : error}`);
    }
  }
}

async function actStep(a: Acting, step: InstallStep): Promise<void> {
  // Commands that change something are printed by the runner, just as they are run.
  if (!("argv" in step)) say(a.run, stepInWords(step));
  try {
    a.done.push({ ...step, outcome: await (DOERS[step.kind] as Doer<InstallStep["kind"]>)(a, step) ?? "done" });
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    a.done.push({ ...step, outcome: why });
    // System errors are failures of a step; all else is a bug.
    const isFailure = error instanceof StepFailure || (error instanceof Error && "code" in error);
    const reason = error instanceof StepFailure ? error.reason : "failed";
    throw isFailure ? new StepFailure(`${step.what}: ${why}`, reason) : error;
  }
}

type Doer<K extends InstallStep["kind"]> = (a: Acting, step: StepOf<K>) => string | void | Promise<string | void>;

/** What does a step; its outcome, where there is more to say than that it is done. */
const DOERS: { readonly [K in InstallStep["kind"]]: Doer<K> } = {
  folder: ({ run: { host }, undo }, { path }) => {
    host.makeFolder(path, 0o755);
    undo.push(() => host.remove(path));
  },
  place: placeGuard,
  write: writeFile,
  remove: removeFile,
  clear: (a, { path }) => clearAway(a, path),
  handshake,
  run: runArgv,
  logs: runArgv,
  tidy: runArgv,
  stop: stopInstance,
  bootout,
  wait: waitUntilGone,
  bootstrap,
  verify: (a, { expect }) => verifyLoaded(a, expect),
};

async function runArgv(a: Acting, { kind, argv, what }: StepOf<"run" | "logs" | "tidy">): Promise<string | void> {
  const { host } = a.run;
  if (kind === "run") a.hasTouchedLaunchd ||= argv[0] === host.tool("launchctl");
  const answer = await host.run(argv, { limitMs: host.limits.commandMs, words: what });
  if (answer.code === 0) return;
  if (kind === "tidy") return `it stays: ${inWords(answer)}`;
  throw new StepFailure(inWords(answer));
}

/** Whether a file is still the one that was looked at: its inode and its bytes. */
function isStill(host: InstallHost, path: string, look: Looked, bytes: Uint8Array | undefined): boolean {
  const now = host.stat(path);
  if (!isThere(look) || !isThere(now)) return isThere(look) === isThere(now) && now !== "denied";
  const read = bytes && host.read(path, bytes.length + 1);
  return now.ino === look.ino && now.dev === look.dev && now.target === look.target &&
    (bytes === undefined || (read !== undefined && isSameBytes(read, bytes)));
}

/** What was looked at, its bytes where they count, and the new file: where it is, or how it is made. */
interface Replacement {
  readonly old: Looked;
  readonly oldBytes?: Uint8Array | undefined;
  readonly make: (beside: string) => void | Promise<void>;
}

/**
 * Puts a new file in the place of one that was looked at: made beside it with its final mode, compared once more,
 * renamed over. Between the comparison and the rename there is no wait. The old file keeps a name until all is well, so
 * that the rollback is a rename and needs no space.
 */
async function replaceFile(a: Acting, path: string, { old, oldBytes, make }: Replacement): Promise<void> {
  const { host } = a.run;
  const [kept, beside] = [path, path].map((file) => file + TEMPORARY_SUFFIX + host.random()) as [string, string];
  try {
    await make(beside);
    if (!isStill(host, path, old, oldBytes)) throw new StepFailure(`${path} has changed in the meantime`, "changed");
    if (isThere(old)) host.link(path, kept);
    host.rename(beside, path);
  } catch (error) {
    removeThere(host, beside, kept);
    throw error;
  }
  const [mine, bytes] = [host.stat(path), bytesOf(a.run, path)];
  a.kept.push(kept);
  (path.endsWith(MEMORY_SUFFIX) ? a.undoNoted : a.undo).push(() => {
    if (!isStill(host, path, mine, bytes)) a.leftAlone.push(path);
    else if (isThere(old)) host.rename(kept, path);
    else host.remove(path);
    host.sync(dirname(path));
  });
  // Of two names of one file rename(2) leaves both, and says that all is well.
  removeThere(host, beside);
  // After the way to undo it: a sync that fails comes too late to leave the old file in place.
  host.sync(dirname(path));
  if (!bytes) throw new StepFailure(`${path} did not get its name`);
}

async function writeFile(a: Acting, { path, bytes, isPlist }: StepOf<"write">): Promise<void> {
  const { run, target: { facts } } = a;
  const make = async (beside: string) => {
    run.host.create(beside, bytes, facts.look.mode & 0o777, facts.look.gid);
    if (!isPlist || run.host.os !== "darwin") return;
    // Apple's own reader must take it before it gets its name.
    const answer = await askTool(run, "plutil", "-lint", beside);
    if (answer.code !== 0) throw new StepFailure(`plutil -lint: ${inWords(answer)}`);
  };
  const [old, oldBytes] = isPlist ? [facts.look, facts.bytes] : [run.host.stat(path), bytesOf(run, path)];
  await replaceFile(a, path, { old, oldBytes, make });
}

/** Removed only if nothing has changed it since it was looked at; it comes back in a rollback. */
function removeFile(a: Acting, { path }: StepOf<"remove">): string | void {
  const { host } = a.run;
  const look = host.stat(path);
  if (!isThere(look)) return "it is gone already";
  if (look.kind === "directory") return void a.emptied.push(path);
  const { place, look: seen, named, bytes, backup } = a.target.facts;
  const isLink = path === place.file && isThere(named) && named.kind === "link";
  const isPlist = path === place.target || path === place.file;
  const old = isPlist ? { look: seen, bytes } : path === place.beside + BACKUP_SUFFIX ? backup : undefined;
  if (isLink ? !isStill(host, path, named, undefined) : old && !isStill(host, path, old.look, old.bytes)) {
    a.leftAlone.push(path);
    throw new StepFailure(`${path} has changed in the meantime`, "changed");
  }
  const kept = path + TEMPORARY_SUFFIX + host.random();
  host.rename(path, kept);
  a.kept.push(kept);
  a.undoRemoved.push(() => {
    if (host.stat(path) === "absent") host.rename(kept, path);
    else a.leftAlone.push(path);
  });
  host.sync(dirname(path));
}

/** The previous guard is kept beside the new one, and comes back with a rollback. */
async function placeGuard(a: Acting, { path, bytes, sign }: StepOf<"place">): Promise<void> {
  const { host } = a.run;
  const { way } = pathComponents(host, dirname(path));
  const { changer } = a.target.facts.place;
  const verdict = checkPathOwners(way, trustOf(changer, "place"));
  if (verdict.why !== undefined) throw new StepFailure(verdict.why);
  const copy = sign === undefined ? undefined : await signedCopy(a.run, bytes, sign);
  const signed = copy === undefined ? bytes : host.read(copy, GUARD_LIMIT_BYTES);
  if (copy !== undefined) removeThere(host, copy, dirname(copy));
  if (!signed) throw new StepFailure(`${copy} cannot be read`);
  const old = host.stat(path);
  const previous = path + PREVIOUS_SUFFIX;
  if (isThere(old)) {
    await replaceFile(a, previous, { old: host.stat(previous), make: (beside) => host.link(path, beside) });
  }
  const gid = changer === 0 ? WHEEL_GID : a.target.facts.user.gid;
  await replaceFile(a, path, { old, make: (beside) => host.create(beside, signed, GUARD_MODE, gid) });
}

/** Signs in a private folder, as the caller and with his keychain; the identifier is the one of every release. */
async function signedCopy({ host }: InstallRun, bytes: Uint8Array, identity: string): Promise<string> {
  const file = join(host.folders.own, TEMPORARY_SUFFIX + host.random(), GUARD_NAME);
  try {
    host.makeFolder(dirname(file), 0o700);
    host.create(file, bytes, 0o700, -1);
    const argv: Argv = [host.tool("codesign"), "--force", "--sign", identity, "--identifier", "org.lima-guard", file];
    const answer = await host.run(argv, { limitMs: host.limits.handshakeMs, words: argv.map(quote).join(" ") });
    if (answer.code !== 0) throw new StepFailure(`codesign: ${inWords(answer)}`);
    return file;
  } catch (error) {
    removeThere(host, file, dirname(file));
    throw error instanceof Error && "code" in error ? new StepFailure(error.message) : error;
  }
}

function removeThere(host: InstallHost, ...paths: readonly string[]): void {
  for (const path of paths) if (isThere(host.stat(path))) host.remove(path);
}

async function handshake(a: Acting, { argv, what: words }: StepOf<"handshake">): Promise<string> {
  const { run, run: { host }, target } = a;
  const { user } = target.facts;
  const path = target.guard?.path ?? "";
  const verdict = await judgePath(run, path, trustOf(user.uid, "run"), user.name);
  if (verdict.why !== undefined) throw new StepFailure(verdict.why);
  const shown = "asks lima-guard for its version: macOS scans a new program the first time";
  const begun = host.clockMs();
  const answer = await withProgress(run, shown, () => host.run(argv, { limitMs: host.limits.handshakeMs, words }));
  a.answerMs = host.clockMs() - begun;
  const version = readVersion(answer);
  if (version === undefined) {
    const said = answer.stdout.trim().slice(0, 80) || inWords(answer);
    throw new StepFailure(`it did not say its version to ${user.name}: ${said}`);
  }
  if (version !== VERSION) a.notes.push(`lima-guard is version ${version}, this is ${VERSION}`);
  a.version = version;
  return `lima-guard ${version}`;
}

/**
 * Back to where it was, from what is seen now. Every step is tried, even if one before it failed; but a bare job whose
 * instance cannot be stopped stays loaded, since launchd's own stop would cut the guest off.
 */
async function rollBack(a: Acting): Promise<void> {
  const { run, target, target: { facts: { place: { target: plist, file } } } } = a;
  const attempt = async (work: () => void | Promise<void>): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      say(run, `the rollback has failed: ${error instanceof Error ? error.message : error}`);
      return a.isBack = false;
    }
  };
  // What the stop still does belongs to the instance; the job is ours.
  await a.stopping;
  // Before anything is stopped: it may be the guard that was removed.
  let areFilesBack = true;
  for (const undo of a.undoRemoved.toReversed()) areFilesBack = await attempt(undo) && areFilesBack;
  const now = a.hasTouchedLaunchd ? await pollUntilKnown(a) : target.facts.loaded;
  const { unload, load } = planRollback(target, now, a.hasBootedOut, run.actor);
  let mayLoad = a.hasTouchedLaunchd;
  for (const step of unload) {
    mayLoad = await attempt(() => actStep(a, step)) || step.kind !== "stop";
    if (!mayLoad) break;
  }
  // A plist that cannot be put back needs its lima-guard and its backup, which were made before it.
  let isUndone = true;
  for (const undo of a.undo.toReversed()) isUndone &&= await attempt(undo);
  const isLeft = a.leftAlone.includes(plist) || a.leftAlone.includes(file);
  const isOurs = isUndone && !isLeft && isThere(run.host.stat(plist));
  const steps = load.map((step) => isOurs ? step : { ...step, expect: undefined }) as InstallStep[];
  let isOff = false;
  // What was never booted out needs no plist to be started.
  for (const step of mayLoad && (!a.hasBootedOut || isThere(run.host.stat(file))) ? steps : []) {
    isOff = !await attempt(() => actStep(a, step)) && step.kind === "bootstrap" || isOff;
  }
  // Where it could not be loaded again, the mark stays: it says that this job is to be loaded.
  for (const undo of isOff ? [] : a.undoNoted.toReversed()) await attempt(undo);
  // What is kept may be the only copy of what could not be put back.
  if (areFilesBack && isUndone) clearAway(a, ...a.kept);
}

async function loadedNow({ run, target }: Pick<Acting, "run" | "target">): Promise<Loaded> {
  return await askLoaded(run, `${target.facts.domain}/${target.job.label}`);
}

/** Looks until there is an answer: what is not known must not be taken for gone. */
async function pollUntilKnown(a: Acting): Promise<Loaded> {
  return (await poll(a, a.run.host.limits.runningMs, (loaded) => loaded.kind !== "unknown")).value;
}

/** How often launchctl is asked at least before it counts as silent. */
const LOOKS = 3;

async function poll(a: Acting, limitMs: number, isEnough: (loaded: Loaded) => boolean) {
  const { host } = a.run;
  const end = host.clockMs() + limitMs;
  for (let looks = 1;; looks++) {
    const value = await loadedNow(a);
    if (isEnough(value)) return { isEnough: true, value };
    // One launchctl that hangs may use up all the time: that is no reason to give up.
    const isTried = value.kind !== "unknown" || looks >= LOOKS;
    if (isTried && host.clockMs() >= end) return { isEnough: false, value };
    await host.pause(host.limits.pollMs);
  }
}

/**
 * The guard's stop, until the job's own process has ended: launchd may be starting it again the next moment. Where the
 * guard says that nothing of the instance lives, a process that is no host agent yet holds no VM: `bootout` ends it.
 */
async function stopInstance(a: Acting, { argv, what, pid: planned }: StepOf<"stop">): Promise<string> {
  const { run: { host }, target: { facts, removesJob } } = a;
  a.hasTouchedLaunchd = true;
  // KeepAlive may have started another process since the plan was made.
  const now = await loadedNow(a);
  if (now.kind === "loaded" && now.pid === undefined) return "its process has ended";
  const pid = now.kind === "loaded" && now.pid !== undefined ? now.pid : planned;
  const progress = host.progress(`${facts.place.name} stops`);
  let ended: Answer | undefined;
  a.stopping = host.run(argv, { limitMs: host.limits.stopMs, words: what }).then((answer) => ended = answer);
  while (ended === undefined && host.alive(pid)) await Promise.race([a.stopping, host.pause(host.limits.pollMs / 5)]);
  progress.finish();
  if (ended === undefined || !host.alive(pid)) return "its process has ended";
  const answer = ended as Answer;
  // A stop that was killed looks like one that went well, but has said nothing.
  const { instances } = jsonOf(answer.stdout);
  const { status, state, blockers } = (Array.isArray(instances) ? instances[0] : undefined) ?? {};
  const isDone = answer.code === EXIT.done && status === EXIT.done;
  if (!isDone && !(removesJob && answer.code === EXIT.noInstance)) {
    throw new StepFailure(blockers?.[0]?.because ?? `${state ?? "it"} was not stopped: ${inWords(answer)}`);
  }
  const end = host.clockMs() + host.limits.reapMs;
  while (host.alive(pid) && host.clockMs() < end) await host.pause(host.limits.pollMs);
  return host.alive(pid) ? "nothing of the instance lives; bootout ends its process" : "its process has ended";
}

async function bootout(a: Acting, { argv, what }: StepOf<"bootout">): Promise<string | void> {
  const { host } = a.run;
  a.hasTouchedLaunchd = a.hasBootedOut = true;
  const answer = await host.run(argv, { limitMs: host.limits.commandMs, words: what });
  if ([0, NO_PROCESS, IN_PROGRESS, NO_SERVICE].includes(answer.code)) return;
  const loaded = await pollUntilKnown(a);
  if (loaded.kind === "absent") return "the job is gone";
  if (loaded.kind === "loaded" && loaded.isEnding) return "the job is ending";
  throw new StepFailure(inWords(answer));
}

async function waitUntilGone(a: Acting, { loaded: { pid, exitTimeoutS } }: StepOf<"wait">): Promise<void> {
  const { host } = a.run;
  const limitMs = host.limits.goneMs + (exitTimeoutS ?? EXIT_TIMEOUT_S) * host.limits.secondMs;
  const isGone = (l: Loaded) => l.kind === "absent" && (pid === undefined || !host.alive(pid));
  const shown = `waits for launchd, up to ${Math.round(limitMs / 1000)} s`;
  const { isEnough, value } = await withProgress(a.run, shown, () => poll(a, limitMs, isGone));
  if (isEnough) return;
  if (value.kind === "unknown") throw new StepFailure(value.why);
  throw new StepFailure(value.kind === "absent" ? `PID ${pid} still lives` : "it is still there");
}

async function bootstrap(a: Acting, { argv, expect, what }: StepOf<"bootstrap">): Promise<string | void> {
  const { host } = a.run;
  a.hasTouchedLaunchd = a.hasBootedOut = true;
  const end = host.clockMs() + host.limits.bootstrapMs;
  for (let tries = 1;; tries++) {
    const answer = await host.run(argv, { limitMs: host.limits.commandMs, words: what });
    const loaded = await pollUntilKnown(a);
    const isIn = expect === undefined ? loaded.kind === "loaded" && !loaded.isEnding : isLoadedAs(loaded, expect.args);
    if (isIn) return tries > 1 ? `done, at try ${tries}` : undefined;
    const isTransient = answer.late || [0, IO_ERROR, IN_PROGRESS, ALREADY].includes(answer.code);
    if (!isTransient || host.clockMs() >= end) {
      const dropped =
        "launchd accepted the job and has not kept it: System Settings > General > Login Items & Extensions";
      throw new StepFailure(answer.code === 0 ? dropped : inWords(answer));
    }
    await host.pause(host.limits.pollMs);
  }
}

async function verifyLoaded(a: Acting, expect: Expected | undefined): Promise<string> {
  const { host } = a.run;
  const isRight = (l: Loaded) =>
    l.kind === "loaded" && (expect === undefined || isLoadedAs(l, expect.args)) &&
    (!expect?.isRunning || l.pid !== undefined);
  const look = async () => {
    const first = await poll(a, host.limits.runningMs, isRight);
    if (!first.isEnough || !expect?.isRunning) return first;
    const { steadyMs } = host.limits;
    await host.pause(Math.max(steadyMs, Math.min(3 * a.answerMs, 5 * steadyMs)));
    const isSame = (l: Loaded) => l.kind === "loaded" && first.value.kind === "loaded" && l.pid === first.value.pid;
    return await poll(a, host.limits.secondMs, isSame);
  };
  const { isEnough, value } = await withProgress(a.run, "looks at the job", look);
  if (value.kind === "unknown") throw new StepFailure(value.why);
  if (value.kind !== "loaded") throw new StepFailure("the job is not loaded");
  if (!isEnough) {
    const idle = "the job does not run, or its process ends soon after its start, and it ran before";
    const isSame = isEqual(value.args, expect?.args);
    throw new StepFailure(isSame ? idle : `launchd would run ${value.args.map(quote).join(" ")}`);
  }
  const inForce = value.exitTimeoutS;
  if (inForce !== undefined && inForce < (expect?.exitTimeoutS ?? 0)) {
    a.notes.push(`launchd has an exit timeout of ${inForce} s in force, the plist says ${expect?.exitTimeoutS} s`);
  }
  return value.pid === undefined ? "as wanted, not running" : `as wanted, running (PID ${value.pid})`;
}

// ─────────────────────────────────────────────────────────────────────────────────── the commands ──

/** A job that is ready to be changed here; one that another user must change; or the report of one that needs nothing. */
type PreparedJob =
  | { readonly kind: "report"; readonly report: JobReport }
  | { readonly kind: "ready"; readonly name: string; readonly target: Target; readonly steps: readonly InstallStep[] }
  | { readonly kind: "hand over"; readonly name: string; readonly uid: number; readonly plist: string | undefined };
type ReadyJob = PreparedJob & { kind: "ready" };
type HandedOver = PreparedJob & { kind: "hand over" };

async function prepareJob(run: InstallRun, name: string): Promise<PreparedJob> {
  const { host, options } = run;
  let file: string | undefined;
  try {
    const isFileOnly = options.plist !== undefined && (options.noReload || isLooking(options));
    if (host.os !== "darwin" && !isFileOnly) {
      const hint = "--plist FILE with --no-reload, --dry-run, --print or --check works anywhere";
      throw new Refusal("Cannot do this here: launchd is part of macOS", hint);
    }
    const place = await findJobPlace(run, name);
    const uid = place.changer;
    file = place.file;
    const plist = place.isChosen ? file : options.plist;
    // What is in a user's folder root leaves to one child that is the user.
    if (uid !== 0 && host.uid !== uid && (host.uid === 0 || !isLooking(options))) {
      return { kind: "hand over", name, uid, plist };
    }
    const facts = await lookAtJob(run, place);
    if (options.role === "check") return { kind: "report", report: await checkJob(run, facts) };
    const target = options.role === "install" ? await installTarget(run, facts) : await uninstallTarget(run, facts);
    // A dry run prints what the process that it would be handed over to does.
    const steps = planSteps(target, options.dryRun ? { ...run.actor, uid } : run.actor);
    if (options.print) {
      const { rewritten: { text: diff, changes } } = target;
      return { kind: "report", report: jobReport(name, "not guarded", EXIT.done, "printed", { diff, changes }) };
    }
    const isDone = steps.every((step) =>
      step.kind === "handshake" || (step.kind === "run" && step.argv[0] === host.tool("codesign"))
    );
    if (isDone && !target.reload) return { kind: "report", report: await nothingToDo(run, target, steps) };
    if (host.uid !== uid && !options.dryRun) return { kind: "hand over", name, uid, plist };
    // The jobs after it are planned on this; should it not be done, they are not tried.
    const { purged, purgedLogs } = target;
    const left = [place.file, ...purged, ...purgedLogs, ...target.reload ? [`${facts.domain}/${facts.job.label}`] : []];
    if (options.role === "uninstall") { for (const one of left) run.leaving.add(one); }
    return { kind: "ready", name, target, steps };
  } catch (error) {
    return { kind: "report", report: refusedReport(name, error, file) };
  }
}

/** What an install refuses is what `--check` names afterwards: the two never disagree. */
async function refuseInstall(run: InstallRun, facts: JobFacts): Promise<void> {
  if (facts.badBackup !== undefined && facts.job.guard === undefined) {
    const hint = `move it away: ls -l ${quote(facts.place.target + BACKUP_SUFFIX)}`;
    throw new Refusal(`Cannot keep a backup: ${facts.badBackup}`, hint);
  }
  const world = await lookAtWorld(run, facts);
  const found = judgeWorld(facts, world).find(([kind, holds]) => kind === "trouble" && holds);
  if (found !== undefined && run.host.os === "darwin") {
    const [, , trouble, topic] = found;
    const ofEvent = topic === "event" ? eventHint(run, facts, world) : undefined;
    throw new Refusal(`Cannot install: ${trouble}`, ofEvent ?? await troubleHint(run, facts, world));
  }
}

const NOTHING_REMOVED = { removesJob: false, purged: [], purgedLogs: [], purgedFolder: undefined };
const NOTHING_PLACED = { guard: undefined, logFolder: undefined, memory: undefined };

/** Refused where launchd would open something on a volume that it does not wait for. */
function refuseAway(host: InstallHost, { place, plist, user }: JobFacts, job: LaunchdJob): void {
  const [away] = awayPaths(host, place, job, user);
  if (away === undefined) return;
  const logs = ["StandardOutPath", "StandardErrorPath"].filter((key) => nodeOf(plist.root, key));
  const hint = logs.map((key) => `sudo plutil -remove ${key} ${quote(place.target)}`).join("; ");
  throw new Refusal(`Cannot install: ${away} ${AWAY}`, hint);
}

async function installTarget(run: InstallRun, facts: JobFacts): Promise<Target> {
  const { host, options } = run;
  const onMac = host.os === "darwin";
  await refuseInstall(run, facts);
  const guard = onMac ? await lookAtGuard(run, facts) : undefined;
  const path = guard?.path ?? options.guard ?? join(options.guardDir ?? host.folders.guards[0] ?? "", GUARD_NAME);
  const wanted = wantedOf(facts, path, options);
  const rewritten = wrapText(facts.plist, facts.job, wanted);
  refuseManaged(run, facts, rewritten.changes.map(({ key, after }) => declaration(key, after)), guard);
  const job = readJob(readPlist(rewritten.text, facts.plist.parse), facts.place.name);
  if (onMac) refuseAway(host, facts, job);
  const logs = wanted.moved?.StandardOutPath ?? wanted.moved?.StandardErrorPath;
  const own = rewritten.changes.filter(({ key }) => !["ProgramArguments", "Program", "ExitTimeOut"].includes(key));
  const wrote = Object.fromEntries(own.flatMap(({ key, after }) => after === undefined ? [] : [[key, after]]));
  const target: Target = {
    ...NOTHING_REMOVED,
    role: "install",
    facts,
    rewritten,
    job,
    guard,
    reload: needsReload(run, facts, job, rewritten),
    enables: options.start,
    stopWith: path,
    logFolder: onMac && logs !== undefined ? dirname(logs) : undefined,
    memory: {
      guard: path,
      isPlaced: guard?.isPlaced === true,
      options: wanted.guardOptions ?? [],
      keepAlive: wanted.keepAlive === true || facts.memory.keepAlive === true,
      wrote: facts.job.guard === undefined ? wrote : facts.memory.wrote && { ...facts.memory.wrote, ...wrote },
      // Until the job is loaded again, it is to be.
      bootedOut: options.noReload ? facts.memory.bootedOut : undefined,
    },
    litter: litterOf(run, facts, path),
  };
  return { ...target, facts: { ...facts, notes: [...facts.notes, ...installNotes(run, target, wanted)] } };
}

/** The lima-guard that stops the instance before an uninstall: the first that the job's user may run without danger. */
async function stopperOf(run: InstallRun, { job, loaded, memory, user }: JobFacts): Promise<string | undefined> {
  const inForce = loaded.kind === "loaded" && isGuard(loaded.args) ? loaded.args[0] : undefined;
  for (const path of [job.guard, inForce, memory.guard, run.host.self.binary]) {
    if (path === undefined || !isThere(pathComponents(run.host, path).look)) continue;
    const { why } = await judgePath(run, path, trustOf(user.uid, "run"), user.name);
    if (why === undefined) return path;
  }
  return undefined;
}

function installNotes(run: InstallRun, { facts, job, guard, reload }: Target, wanted: Wanted): string[] {
  const { options, host } = run;
  const isOff = facts.loaded.kind === "absent" && facts.disabled !== true && !reload && !options.noReload &&
    facts.place.kind !== "file";
  const start = commandFor(run, facts, { start: true, noReload: false });
  const short = (wanted.exitTimeoutS ?? EXIT_TIMEOUT_S) < EXIT_TIMEOUT_S;
  const table: [boolean, string][] = [
    [options.keepAlive && facts.job.keepAlive !== undefined, "KeepAlive is there already, and stays as it is"],
    [
      restartsOnSuccess(facts.job.keepAlive),
      "KeepAlive {SuccessfulExit: true} would start the instance again after a requested stop: it becomes false, and --uninstall gives it back",
    ],
    [short, `an ExitTimeOut of ${wanted.exitTimeoutS} s is less than the ${EXIT_TIMEOUT_S} s that a guest may need`],
    [facts.loaded.kind === "no session", "no user is logged in at the screen: it takes effect at the next login"],
    [!job.startsByItself, "nothing starts it at boot or login: it has neither RunAtLoad nor KeepAlive"],
    [facts.disabled === true && !options.start, `the job is disabled, and stays so (${start} enables and loads it)`],
    [isOff, `the job is not loaded, and stays so until the next boot or login (${start} loads it now)`],
    [
      facts.otherVolume && facts.place.kind === "daemon",
      "it is on another volume: macOS mounts it before a login only after sudo defaults write " +
      "/Library/Preferences/SystemConfiguration/autodiskmount AutomountDisksWithoutUserLogin -bool true",
    ],
    [host.os !== "darwin", `this is no Mac: ${wanted.guard} was not looked at`],
  ];
  const consent = facts.job.guard === wanted.guard ? [] : consentNotes(facts, wanted.guard);
  return [...facts.job.remarks, ...guard?.warnings ?? [], ...consent, ...holding(table)];
}

/** A job that Lima or an install has made is of no use without its instance. */
function goesWithInstance({ instance, job }: JobFacts): boolean {
  return instance === "gone" && (job.guard !== undefined || job.label.startsWith("io.lima-vm."));
}

async function uninstallTarget(run: InstallRun, facts: JobFacts): Promise<Target> {
  const { host, options } = run;
  const { guard, command, isBehindShell } = facts.job;
  const bare = isBehindShell ? `exec ${command.join(" ")}` : declaration("ProgramArguments", [...command]);
  refuseManaged(run, facts, guard === undefined ? [] : [bare]);
  const { wrote } = facts.memory;
  const rewritten = unwrapText(facts.plist, facts.job, { backup: facts.backup?.plist, wrote });
  const job = readJob(readPlist(rewritten.text, facts.plist.parse), facts.place.name);
  const isGone = host.os === "darwin" && goesWithInstance(facts) && !options.noReload;
  const removesJob = isGone || facts.place.beside !== facts.place.target;
  const isLost = rewritten.changes.length > 0 && facts.backup === undefined;
  const unloads = removesJob && facts.loaded.kind === "loaded" && !options.noReload;
  const reload = unloads || needsReload(run, facts, job, rewritten);
  const stopWith = reload ? await stopperOf(run, facts) : undefined;
  const named = removesJob ? [] : [job.stdoutPath, job.stderrPath];
  const logs = [facts.job.stdoutPath, facts.job.stderrPath].filter(isOurLog).filter((log) => !named.includes(log));
  const purgedLogs = options.purge ? logs : [];
  if (reload) await refuseUnload(run, { ...facts, job }, { removesJob, stopWith });
  const notes = holding([
    [facts.badBackup !== undefined, `${facts.badBackup}; it stays where it is`],
    [isLost, "there is no backup: only the command goes back, ExitTimeOut and the rest stay as they are"],
  ]);
  return {
    ...NOTHING_PLACED,
    role: "uninstall",
    facts: { ...facts, notes: [...facts.job.remarks, ...notes] },
    rewritten: removesJob ? { text: facts.plist.text, changes: [] } : rewritten,
    job,
    reload,
    enables: options.start,
    stopWith,
    removesJob,
    purged: options.purge ? await purgedFiles(run, facts, { removesJob, reload }) : [],
    purgedLogs,
    purgedFolder: options.purge ? await emptiedLogFolder(run, facts.user, purgedLogs) : undefined,
    litter: litterOf(run, facts, facts.job.guard ?? facts.memory.guard),
  };
}

/** A job that runs and would not come up again under its old plist, and a bare one that no lima-guard can stop. */
async function refuseUnload(run: InstallRun, old: JobFacts, how: Pick<Target, "removesJob" | "stopWith">) {
  if (isBare(old.loaded) && how.stopWith === undefined) {
    const why = "no lima-guard is there to stop the instance, and launchd would cut its guest off";
    throw new Refusal(`Cannot unload the job: ${why}`, `${limactlStop(run, old)}, then run this again`);
  }
  if (how.removesJob || !isRunning(old.loaded)) return;
  const world = await lookAtWorld(run, old);
  // It runs now, so the volume of its program is there.
  const [trouble] = wordsOf(judgeWorld(old, { ...world, isToolAway: false }), "trouble");
  if (trouble === undefined) return;
  const fileOnly = commandFor(run, old, { noReload: true, start: false, restart: false });
  const hint = old.domains.length > 1 ? await troubleHint(run, old, world) : fileOnly;
  throw new Refusal(`Cannot load the job again: ${trouble}`, hint);
}

/** The guard, if no job needs it, and what is left beside the plist. */
async function purgedFiles(run: InstallRun, facts: JobFacts, after: Pick<Target, "removesJob" | "reload">) {
  const { host } = run;
  const { place, job, user, loaded, backup, memory } = facts;
  const own = ownGuardFolder(user);
  // An uninstall without --purge has left no note of it.
  const places = (place.changer === 0 ? host.folders.guards : [own]).map((folder) => join(folder, GUARD_NAME));
  const guard = job.guard ?? memory.guard ??
    (loaded.kind === "loaded" && isGuard(loaded.args) ? loaded.args[0] : undefined) ??
    places.find((path) => isThere(host.stat(path)) && !run.leaving.has(path));
  const isNeeded = guard === undefined || await isGuardNeeded(run, facts, guard, after.reload);
  const placed = guard !== undefined && isPlacedByUs(host, guard, user, memory) ? [guard, guard + PREVIOUS_SUFFIX] : [];
  const guards = isNeeded ? [] : [...placed, join(host.folders.log, LOG_NAME)];
  const isBackupLeft = backup !== undefined && job.guard === undefined && !after.removesJob;
  const left = [...isBackupLeft ? [place.target + BACKUP_SUFFIX] : [], ...guards].filter((p) => isThere(host.stat(p)));
  // The folders that an install makes, where they are of the same user and nothing else is in them.
  for (const made of [host.folders.guards[0] ?? "", own, dirname(own)]) {
    const look = host.stat(made);
    const isOurs = isThere(look) && look.kind === "directory" && look.uid === place.changer;
    const isEmptied = isOurs && left.some((path) => dirname(path) === made) &&
      namesIn(host, made).every((name) => left.includes(join(made, name)));
    if (isEmptied) left.push(made);
  }
  return left;
}

/** Whether a job runs this guard, in its file or as launchd has it. One that may not be read may do so, in whatever form. */
async function isGuardNeeded(run: InstallRun, facts: JobFacts, guard: string, reload: boolean): Promise<boolean> {
  const { host } = run;
  const { place, domain, job, user, loaded } = facts;
  if (place.kind === "file" || loaded.kind === "not asked") return true;
  const look = (path: string) => pathComponents(host, path).look;
  const mine = look(guard);
  const isIt = (word: string) => {
    const other = word.startsWith("/") && isThere(mine) && look(word);
    return word === guard || (other && isThere(other) && other.dev === mine.dev && other.ino === mine.ino);
  };
  const runsIt = (words: readonly string[]) => words.flatMap((word) => [word, ...word.split(/\s/)]).some(isIt);
  const labels = reload ? [] : [job.label];
  for (const file of namesIn(host, dirname(place.file)).map((n) => join(dirname(place.file), n))) {
    if (!file.endsWith(".plist") || file === place.file || run.leaving.has(file)) continue;
    const { way, look } = pathComponents(host, file);
    const isSafe = checkPathOwners(way, trustOf(place.changer, "run")).why === undefined;
    const bytes = isSafe && isThere(look) && look.kind === "file" ? host.read(look.path, PLIST_LIMIT_BYTES) : undefined;
    const text = new TextDecoder().decode(bytes);
    if (bytes === undefined || text.includes(guard) || text.includes(stringElement(guard))) return true;
    if (/^bplist[^]*lima-guard/.test(text) || runsIt(text.split(/[<>]/))) return true;
    if (/limactl|colima/.test(text)) {
      labels.push(/<key>Label<\/key>\s*<string>([^<]+)</.exec(text)?.[1] ?? basename(file, ".plist"));
    }
  }
  for (const of of place.kind === "daemon" ? [domain] : loginDomains(user.uid)) {
    const listed = await askTool(run, "launchctl", "print", of);
    const isAnswer = listed.code === 0 || listed.code === NO_SERVICE || NO_SESSION.includes(listed.code);
    if (!isAnswer) return true;
    for (const label of new Set([...labels, ...readLimaLabels(listed.stdout)])) {
      if ((reload && label === job.label) || run.leaving.has(`${of}/${label}`)) continue;
      const has = await askLoaded(run, `${of}/${label}`);
      if (has.kind === "unknown" || (has.kind === "loaded" && runsIt(has.args))) return true;
    }
  }
  return false;
}

/** The folder of the logs in the user's home, where it is his and nothing is in it but these logs. */
async function emptiedLogFolder(run: InstallRun, user: User, logs: readonly string[]): Promise<string | undefined> {
  const folder = logFolderOf(user);
  const look = run.host.stat(folder);
  if (!isThere(look) || look.kind !== "directory" || look.uid !== user.uid) return undefined;
  const names = await namesAsUser(run, user, folder);
  const gone = [...logs, ...run.leaving];
  return names?.every((name) => gone.includes(join(folder, name))) ? folder : undefined;
}

/** Files under temporary names that a run which was killed has left beside these, and its private folders. */
function litterOf({ host }: InstallRun, { place }: JobFacts, guard: string | undefined): string[] {
  const { changer } = place;
  const isOwn = (path: string, kind: FileLook["kind"]) => {
    const there = host.stat(path);
    return isThere(there) && there.kind === kind && there.uid === changer;
  };
  const names = (folder: string) => {
    const there = host.stat(folder);
    return host.uid === changer && isThere(there) && there.kind === "directory" ? namesIn(host, folder) : [];
  };
  const beside = [place.target, ...guard === undefined ? [] : [guard]].flatMap((file) =>
    names(dirname(file)).filter((name) => name.startsWith(basename(file)) && LITTER.test(name))
      .map((name) => join(dirname(file), name)).filter((path) => isOwn(path, "file"))
  );
  const folders = names(host.folders.own).filter((name) => LITTER.exec(name)?.index === 0)
    .map((name) => join(host.folders.own, name)).filter((path) => isOwn(path, "directory"))
    .filter((path) => namesIn(host, path).every((name) => name === GUARD_NAME));
  const copies = folders.map((folder) => join(folder, GUARD_NAME)).filter((path) => isOwn(path, "file"));
  return [...beside, ...copies, ...folders];
}

/** Whether launchd has something else than the file will say. What was off stays off. */
function needsReload(run: InstallRun, facts: JobFacts, job: LaunchdJob, { changes }: Rewritten): boolean {
  const { options } = run;
  const { loaded } = facts;
  const isAsked = loaded.kind !== "no session" && loaded.kind !== "not asked";
  if (options.noReload || !isAsked || facts.place.kind === "file") return false;
  if (loaded.kind === "unknown" || facts.disabled === undefined) {
    const why = loaded.kind === "unknown" ? loaded.why : UNSAID;
    throw unsaid(why, "run this again; --no-reload changes the file only");
  }
  if (loaded.kind === "absent") return options.start || facts.isBootedOut;
  if (changes.length > 0 || options.restart) return true;
  const wanted = Math.min(job.exitTimeOut ?? 0, EXIT_TIMEOUT_S);
  const isOther = !isEqual(loaded.args, job.args) || (loaded.startsByItself && !job.startsByItself);
  const { exitTimeoutS = wanted, path } = loaded;
  // What `--check` names; a bare job is not stopped for it.
  const isOld = job.guard !== undefined && (exitTimeoutS > job.grantedS || isFromElsewhere(facts.place, path));
  const isToStart = options.start && facts.disabled === true && !isRunning(loaded);
  return loaded.isEnding || isOther || isOld || isToStart || exitTimeoutS < wanted;
}

/** A file that another program writes: what to put there, and what to declare there; nothing where it says all of it. */
function refuseManaged(run: InstallRun, { place, job }: JobFacts, declared: readonly string[], guard?: GuardFacts) {
  const { host, options } = run;
  const isStore = place.target.startsWith("/nix/store/");
  const isOurs = !isStore && !job.isBehindShell && host.writeTrouble(place.target) === undefined;
  if (options.print || isOurs || declared.length === 0) return;
  const why = isStore || job.isBehindShell ? "Nix made it" : "its volume is read-only";
  const sudo = place.changer === 0 && host.uid !== 0 ? "sudo " : "";
  const [from, to] = [host.self.binary ?? GUARD_NAME, guard?.path ?? ""].map(quote);
  const put = `${sudo}install -d ${quote(dirname(guard?.path ?? ""))}; ${sudo}install -m 0755 ${from} ${to}; then `;
  const hint = `${guard?.bytes ? put : ""}declare there: ${declared.join(", ")}`;
  throw new Refusal(`Cannot change ${place.target}: ${why}`, hint);
}

/** A key and its value, as a person declares it: behind a shell it is the command line. */
function declaration(key: string, value: Value | undefined): string {
  const line = Array.isArray(value) ? /^\/bin\/wait4path \S+ && (exec .*)$/.exec(String(value[2]))?.[1] : undefined;
  return line ?? `${key} = ${JSON.stringify(value)}`;
}

/** Our own command for this very job, as the person who reads it can type it: with the options of this run. */
function commandFor(run: InstallRun, facts: JobFacts, more: Partial<InstallOptions> = {}): string {
  const { options, host } = run;
  const { place, user } = facts;
  const once = { all: false, dryRun: false, print: false, yes: false, json: false, verbose: false };
  const role = more.role ?? options.role;
  const changer = role === "check" ? user.uid : place.changer;
  const sudo = host.uid === changer ? [] : changer === 0 ? ["sudo"] : ["sudo", "-H", "-u", user.name];
  const named = place.isChosen && host.uid !== changer ? { plist: place.file } : {};
  const given = { ...options, ...once, ...named, purge: options.purge && role === "uninstall", ...more };
  return [...sudo, ...commandWords(given, [place.name], ["lima-guard"])].map(quote).join(" ");
}

/** Lima's own stop of what is loaded, as the person who reads it can type it; Colima's where no limactl is to be found. */
function limactlStop({ host }: InstallRun, { job, user, loadedHome, place: { name } }: JobFacts): string {
  const program = job.command[0] ?? "";
  const others = host.folders.programs.map((folder) => join(folder, "limactl"));
  const limactl = job.tool === "colima" ? others.find((path) => isThere(pathComponents(host, path).look)) : program;
  const isHome = limactl === undefined && basename(loadedHome) === "_lima";
  const home = isHome ? `COLIMA_HOME=${quote(dirname(loadedHome))}` : `LIMA_HOME=${quote(loadedHome)}`;
  const words = limactl === undefined ? [program, "stop", name.replace(/^colima-?/, "")] : [limactl, "stop", name];
  const sudo = host.uid === user.uid ? "" : `sudo -H -u ${quote(user.name)} `;
  return `${sudo}${home} ${words.filter((word) => word !== "").map(quote).join(" ")}`;
}

/** What to do about a program for events that the job cannot have. */
function eventHint(run: InstallRun, facts: JobFacts, { event }: WorldFacts): string | undefined {
  if (event?.kind !== "trouble") return undefined;
  if (run.options.onEvent !== undefined) return event.hint;
  return commandFor(run, facts, { role: "install", noOnEvent: true });
}

async function troubleHint(run: InstallRun, facts: JobFacts, world: WorldFacts): Promise<string> {
  const { instance, loaded, domain, domains, job, place, user } = facts;
  if (goesWithInstance(facts)) return commandFor(run, facts, { role: "uninstall", noReload: false });
  if (instance === "gone") {
    const unload = loaded.kind === "loaded" ? [["launchctl", "bootout", `${domain}/${job.label}`]] : [];
    const sudo = place.changer === 0 && run.host.uid !== 0 ? ["sudo"] : [];
    return [...unload, ["rm", place.file]].map((argv) => [...sudo, ...argv].map(quote).join(" ")).join("; ");
  }
  if (domains.length > 1) {
    const service = `${domains[1]}/${job.label}`;
    const twin = await askLoaded(run, service);
    const home = homeOfJob(run.host, loadedJob(job, twin), user, place.name).path;
    return await unloadHint(run, service, twin, place.name, home);
  }
  if (world.tool !== "gone" && !world.isToolAway) return plutil("-p")(place.file);
  const program = job.command[0] ?? "";
  const near = world.isToolAway && world.otherTool === undefined
    ? `install ${basename(program)} on the boot volume, then `
    : "";
  if (!job.label.startsWith("io.lima-vm.")) {
    return world.isToolAway ? `${near}edit ${quote(place.file)}` : `ls -l ${quote(program)}`;
  }
  const condition = job.label.startsWith(DAEMON_LABEL) ? " --condition=boot" : "";
  return `${near}${quote(world.otherTool ?? "limactl")} autostart enable ${place.name}${condition}`;
}

/** Nothing is to be changed, and the guard has answered. */
async function nothingToDo(run: InstallRun, target: Target, steps: readonly InstallStep[]): Promise<JobReport> {
  const { facts, role, job } = target;
  const { name, file, changer } = facts.place;
  const isOthers = run.options.dryRun && run.host.uid !== changer;
  const acted = isOthers || role === "uninstall" ? undefined : await act(run, target, steps);
  if (acted?.failure) return { ...blocked(name, "refused", EXIT.failed, acted.failure.message), plist: file };
  const isOff = facts.disabled === true || facts.loaded.kind === "absent";
  const state = role === "uninstall" ? "not guarded" : isOff ? "guarded, off" : "guarded";
  const words = role === "install" ? `${state} already: ${job.label} runs ${job.guard}` : `not guarded: nothing to do`;
  return targetReport(target, state, words, { guard: guardOf(target, acted?.version) });
}

function targetReport(target: Target, state: JobReport["state"], words: string, more: Partial<JobReport> = {}) {
  const { facts: { place, notes }, job } = target;
  const all = { plist: place.file, guard: guardOf(target, undefined), notes: notesOf(job, notes), ...more };
  return jobReport(place.name, state, EXIT.done, words, all);
}

function notesOf({ label }: LaunchdJob, notes: readonly string[]): JobReport["notes"] {
  return notes.map((because) => ({ what: label, because }));
}

function guardOf({ guard, job }: Target, version: string | undefined): JobReport["guard"] {
  const path = guard?.path ?? job.guard;
  if (path === undefined) return null;
  return { path, version: version ?? guard?.version ?? null, previous: guard?.previous ?? null, running: null };
}

async function checkJob(run: InstallRun, facts: JobFacts): Promise<JobReport> {
  const { place, job, loaded } = facts;
  const onMac = run.host.os === "darwin";
  const answer = job.guard !== undefined && onMac ? await askGuard(run, facts, job.guard) : undefined;
  const seen: JobFacts = onMac ? facts : { ...facts, instance: "there" };
  const world = await lookAtWorld(run, seen);
  const judged = judgeCheck(seen, answer, world, run.options.exitTimeoutS);
  const { troubles, unknown, notes } = judged;
  const { version = null, running = null } = answer?.kind === "version" ? answer : {};
  if (running !== null && running !== version) {
    const restart = commandFor(run, facts, { role: "install", restart: true });
    notes.push(`version ${running} is running, and ${job.guard} is version ${version}: ${restart} loads that one`);
  }
  const state = checkedState(job, judged, answer);
  const pid = loaded.kind === "loaded" && loaded.pid !== undefined ? `, running (PID ${loaded.pid})` : "";
  const status = troubles.length > 0 ? EXIT.failed : unknown.length > 0 ? EXIT.tryAgain : EXIT.done;
  const hint = state === "not asked" ? commandFor(run, facts) : await checkHint(run, facts, { world, troubles });
  return jobReport(place.name, state, status, `${state}${troubles.length === 0 ? `: ${job.label}${pid}` : ""}`, {
    plist: place.file,
    guard: job.guard === undefined ? null : { path: job.guard, version, previous: null, running },
    blockers: [...troubles, ...unknown].map((because) => ({ what: job.label, because, hint })),
    notes: notesOf(job, notes),
  });
}

/** What to do about what a check has found. */
async function checkHint(run: InstallRun, facts: JobFacts, found: { world: WorldFacts; troubles: readonly string[] }) {
  const { domain, domains, fileTrouble, instance, job, loaded, place } = facts;
  if (run.host.os === "darwin" && place.kind === "file") {
    const { plist: _, ...byName } = run.options;
    return commandFor({ ...run, options: byName }, facts);
  }
  if (fileTrouble) return fileTrouble.hint;
  if (instance === "gone" || domains.length > 1 || found.world.tool === "gone" || found.world.isToolAway) {
    return await troubleHint(run, facts, found.world);
  }
  const { command: [program = ""] } = job;
  if (found.world.tool === "hidden" && !program.startsWith("/") && found.troubles.length === 0) {
    return `write the whole path of ${program} into ${place.file}, then ${commandFor(run, facts, { role: "install" })}`;
  }
  const sudo = run.host.uid !== 0 && domain === "system" ? "sudo " : "";
  // An install would change nothing.
  if (isNotStarted(loaded) && found.troubles.length === 1) {
    return `${sudo}launchctl kickstart ${domain}/${job.label}, once that is solved`;
  }
  // Once a job that is ending is gone, it is off, and an install leaves it so.
  const start = run.options.start || (loaded.kind === "loaded" && loaded.isEnding);
  return eventHint(run, facts, found.world) ?? commandFor(run, facts, { role: "install", start });
}

function checkedState(job: LaunchdJob, judged: ReturnType<typeof judgeCheck>, answer: GuardAnswer | undefined) {
  const { troubles, unknown, isOff } = judged;
  if (job.guard === undefined) return "not guarded";
  if (troubles.length > 0) return "broken";
  if (unknown.length > 0) return answer?.kind === "not asked" ? "not asked" : "unknown";
  return isOff ? "guarded, off" : "guarded";
}

/** Asks the guard for its version: judged first, and only as the job's user. A job that runs proves that it starts. */
async function askGuard(run: InstallRun, facts: JobFacts, path: string): Promise<GuardAnswer> {
  const { user, loaded, job, limaHome, place } = facts;
  if (pathComponents(run.host, path).look === "absent") return { kind: "trouble", why: `${path} is not there` };
  const answer = await askVersion(run, path, user);
  if (typeof answer === "string") return { kind: "trouble", why: answer };
  if (!answer) return { kind: isRunning(loaded) && isLoadedAs(loaded, job.args) ? "proven by its job" : "not asked" };
  const version = readVersion(answer);
  if (version === undefined) return { kind: "trouble", why: `${path} does not answer to --version` };
  // The version that runs the job now has the last start in the instance's journal.
  const dir = join(limaHome, place.name);
  const tail: Argv = [run.host.tool("tail"), "-c", String(JOURNAL_TAIL_BYTES), join(dir, "lima-guard.jsonl")];
  const ended = isRunning(loaded) ? await askAsUser(run, user, tail) : undefined;
  const start = ended?.code === 0 ? readJournal(ended.stdout, dir).findLast((l) => l.event === "start") : undefined;
  return { kind: "version", version, running: typeof start?.["version"] === "string" ? start["version"] : undefined };
}

/** What a dry run reports: the plan, the diff, and the status of a real run that goes well. */
async function planned(run: InstallRun, { target, steps }: ReadyJob): Promise<JobReport> {
  const { facts: { place, plist }, rewritten: { text, changes } } = target;
  return targetReport(target, target.role === "install" ? "not guarded" : "guarded", "would be changed", {
    changed: true,
    steps: steps.map(({ kind, what, because }) => ({ kind, what, because })),
    changes,
    diff: changes.length === 0 ? "" : await run.host.unifiedDiff(place.target, plist.text, text),
  });
}

async function refuseChanged(run: InstallRun, target: Target): Promise<void> {
  const { facts: { place, look, named, bytes, loaded }, job } = target;
  const refusal = (why: string) => new Refusal(`Cannot continue: ${why}`, "run this again", EXIT.tryAgain);
  // What was planned on may have changed while a person read the question.
  const isSame = isStill(run.host, place.target, look, bytes) && isStill(run.host, place.file, named, undefined);
  if (!isSame) throw refusal(`${place.file} has changed in the meantime`);
  const now = target.reload ? await loadedNow({ run, target }) : loaded;
  if (isUnchanged(loaded, now)) return;
  throw refusal(now.kind === "unknown" ? now.why : `what launchd has of ${job.label} has changed in the meantime`);
}

async function carryOut(run: InstallRun, { target, steps }: ReadyJob): Promise<JobReport> {
  const { host } = run;
  const { facts, job, role, rewritten: { changes } } = target;
  const begun = host.clockMs();
  await refuseChanged(run, target);
  // The guard is placed once, whatever jobs run it.
  const isPlaced = target.guard !== undefined && run.placed.has(target.guard.path);
  const left = steps.filter(({ kind }) => !isPlaced || (kind !== "place" && kind !== "folder"));
  const acting = await act(run, target, left);
  const leftAlone = acting.leftAlone.map((path) =>
    `${path} was changed by another program in the meantime, and was left alone`
  );
  const more = {
    guard: guardOf(target, acting.version),
    seconds: { total: Math.round(host.clockMs() - begun) / 1000 },
    steps: acting.done.map(({ kind, what, because, outcome }) => ({ kind, what, because, outcome: outcome ?? "done" })),
    notes: notesOf(job, [...facts.notes, ...acting.notes, ...leftAlone]),
  };
  if (acting.failure !== undefined) return failedReport(acting, more);
  if (target.guard && acting.version !== undefined) run.placed.add(target.guard.path);
  const isOff = !target.reload && facts.place.kind !== "file" && facts.loaded.kind === "absent";
  const state = role === "uninstall" ? "not guarded" : isOff ? "guarded, off" : "guarded";
  const loaded = acting.done.findLast((s) => s.kind === "verify")?.outcome;
  const where = target.removesJob
    ? `removed: its ${facts.instance === "gone" ? "instance" : "plist"} is gone`
    : loaded ?? (target.reload ? "loaded" : "in the file only");
  return targetReport(target, state, `${state}: ${job.label}: ${where}`, { ...more, changed: true, changes });
}

function failedReport({ run, target, leftAlone, failure, isBack }: Acting, more: Partial<JobReport>): JobReport {
  const { facts: { place: { name, file }, domain }, job } = target;
  const sudo = domain === "system" && run.host.uid !== 0 ? "sudo " : "";
  const hint = isBack
    ? `${commandFor(run, target.facts)}, once that is solved`
    : `launchctl print ${domain}/${job.label}; ${sudo}launchctl bootstrap ${domain} ${quote(file)}`;
  const state = isBack ? "rolled back" : "broken";
  const status = isBack && failure?.reason === "changed" ? EXIT.tryAgain : EXIT.failed;
  const whole = leftAlone.length > 0
    ? "rolled back, except for what another program has changed"
    : "rolled back: the old plist and the old job are in place";
  const words = isBack ? whole : "broken: the rollback has failed too";
  const blockers = [{ what: name, because: failure?.message ?? "", hint }];
  return jobReport(name, state, status, words, { plist: file, ...more, changed: !isBack, blockers });
}

/** The jobs that are ready, one after the other, under one lock; after the first that had to be rolled back no other is tried. */
async function carryOutAll(run: InstallRun, ready: readonly ReadyJob[]): Promise<JobReport[]> {
  if (ready.length === 0) return [];
  const lock = run.host.lock(run.host.folders.own);
  if ("pid" in lock) {
    throw new Refusal(`Cannot start: another install (PID ${lock.pid}) is using it`, "run this again", EXIT.tryAgain);
  }
  const reports: JobReport[] = [];
  try {
    for (const job of ready) {
      const undone = run.options.purge ? reports.find((r) => r.status !== EXIT.done) : undefined;
      const failed = failedIn(reports) ?? undone;
      const carriedOut = () => carryOut(run, job).catch((error: unknown) => refusedReport(job.name, error));
      reports.push(failed ? notTried(job.name, failed) : await logged(run, job.target, await carriedOut()));
    }
  } finally {
    lock.close();
  }
  return reports;
}

function failedIn(reports: readonly JobReport[]): JobReport | undefined {
  return reports.find((r) => r.state === "rolled back" || r.state === "broken");
}

function notTried(name: string, failed: JobReport): JobReport {
  const what = failed.state === "unknown" ? "could not be changed" : "had to be rolled back";
  return blocked(name, "not tried", EXIT.tryAgain, `${failed.name} ${what}`);
}

/** Who has done what, and when, for the next administrator. A log that cannot be written is a note. */
async function logged(run: InstallRun, target: Target, report: JobReport): Promise<JobReport> {
  const { host, options } = run;
  const file = join(host.folders.log, LOG_NAME);
  if (host.os !== "darwin" || target.purged.includes(file) || report.steps.length === 0) return report;
  const { name, state, changed, plist, guard, blockers } = report;
  const line = {
    time: new Date(host.wallMs()).toISOString(),
    uid: host.uid,
    sudoUid: host.env("SUDO_UID") ?? null,
    version: VERSION,
    role: options.role,
    ...{ name, state, changed, plist, guard },
    because: blockers.map((b) => b.because),
  };
  try {
    const verdict = await judgePath(run, host.folders.log, trustOf(host.uid, "place"));
    if (verdict.why !== undefined) throw new Refusal(verdict.why);
    host.append(file, `${JSON.stringify(line)}\n`);
    return report;
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const because = `no line was written to ${file}: ${error.message}`;
    return { ...report, notes: [...report.notes, { what: name, because }] };
  }
}

/** Hands the whole command over, once: to root through sudo, or as root to one child that is the user. Returns the reports, or the status where they were printed already. */
async function handOver(run: InstallRun, jobs: readonly HandedOver[]): Promise<JobReport[] | number> {
  const { host } = run;
  const names = jobs.map((job) => job.name);
  const { uid, plist } = jobs[0] ?? { uid: 0 };
  // The jobs of `--all` that need nothing have been reported here.
  const options = { ...run.options, all: false, ...plist === undefined ? {} : { plist } };
  const who = uid === 0 ? [] : ["-H", "-u", `#${uid}`];
  const typed = ["sudo", ...who, ...commandWords(options, names, ["lima-guard"])].map(quote).join(" ");
  const refusal = (why: string) => new Refusal(why, typed, EXIT.denied);
  if (host.uid !== 0 && uid !== 0) throw refusal(`Cannot act for user ${uid}: you are user ${host.uid}`);
  if (host.uid !== 0 && host.env("SUDO_UID") !== undefined) {
    throw refusal(`Cannot change a job of root's: sudo has made this user ${host.uid}, not root`);
  }
  const program = await handOverProgram(run);
  const { sign: _, ...rest } = options;
  const words = commandWords(program.isSigned ? rest : options, names, [program.path]);
  const isQuiet = !host.canAsk || uid !== 0;
  const argv: Argv = [host.tool("sudo"), ...isQuiet ? ["-n"] : [], ...who, ...words];
  say(run, `hands over to ${uid === 0 ? "root" : `user ${uid}`}: ${argv.map(quote).join(" ")}`);
  try {
    const { code, stdout } = await host.handOver(argv, !options.json);
    // sudo itself prints nothing to stdout; an install always does.
    if (code === EXIT.failed && stdout === "") throw refusal("Cannot go through sudo: it was refused");
    const { instances } = jsonOf(options.json ? stdout : "");
    const reports: JobReport[] = Array.isArray(instances) ? instances : [];
    const isPrinted = !options.json && stdout !== "" && Object.values<number>(EXIT).includes(code);
    const isReported = reports.length > 0 && worst(reports.map((r) => r.status)) === code;
    if (isPrinted || isReported) return isPrinted ? code : reports;
    const where = options.plist === undefined ? [] : ["--plist", options.plist];
    const check = (name: string) => ["sudo", ...who, "lima-guard", "--check", ...where, name].map(quote).join(" ");
    // Killed, perhaps in the middle.
    const because = `what was handed over ended with status ${code} and no report: what it has changed is not known`;
    return names.map((name) => ({ ...blocked(name, "unknown", EXIT.tryAgain, because, check(name)), changed: true }));
  } finally {
    if (program.isSigned) removeThere(host, program.path, dirname(program.path));
  }
}

/** The compiled guard that another user may be handed: never a script or a cache of a user's. */
async function handOverProgram(run: InstallRun): Promise<{ path: string; isSigned: boolean }> {
  const { host, options } = run;
  const source = await guardSource(run, join(host.folders.guards[0] ?? "", GUARD_NAME));
  const path = host.self.binary ?? source?.from ?? join(host.folders.guards[0] ?? "", GUARD_NAME);
  await refuseSource(run, path);
  if (options.sign === undefined || !source?.bytes) return { path, isSigned: false };
  return { path: await signedCopy(run, source.bytes, options.sign), isSigned: true };
}

/** Every instance that has a job here: for `--all`. */
async function allNames(run: InstallRun): Promise<string[]> {
  const { host, options } = run;
  const found = new Set(
    (await candidates(run)).map((c) => c.instance ?? "").filter((n) => nameTrouble(n) === undefined),
  );
  if (options.role !== "install" && host.os === "darwin") {
    for (const domain of ["system", ...loginDomains(host.uid)]) {
      const listed = await askTool(run, "launchctl", "print", domain);
      const isWhole = listed.code === 0 && listed.stdout.endsWith("}\n");
      if (!isWhole && ![...NO_SESSION, NO_SERVICE].includes(listed.code)) throw unsaid(`${domain}: ${inWords(listed)}`);
      for (const label of readLimaLabels(listed.stdout)) found.add(label.split(".").slice(3).join("."));
    }
  }
  if (found.size > 0) return [...found].sort();
  const why = "Cannot find a job: no plist here starts an instance";
  throw new Refusal(why, "limactl autostart enable NAME", EXIT.noInstance);
}

/** The one question. No person to be asked is no yes: a job must not be stopped by accident. */
async function ask(run: InstallRun, ready: readonly ReadyJob[]): Promise<Refusal | undefined> {
  const { host } = run;
  if (!host.canAsk) return new Refusal("Nothing was changed: there is no terminal to ask at", "--yes");
  if (ready.length === 0) return undefined;
  for (const job of ready) host.stderr(formatJobs([await planned(run, job)], true));
  const stops = ready.filter(({ steps }) => steps.some((s) => s.kind === "stop" || s.kind === "bootout"));
  const words = stops.length === 0 ? "" : ` This stops ${stops.map((r) => r.name).join(", ")} and starts it again.`;
  const isYes = await host.confirm(`Continue?${words}`);
  return isYes ? undefined : new Refusal("Nothing was changed: the answer was no");
}

/** Looks at every job, asks, acts, and hands over what is another user's. Returns the exit status. */
async function runCommand(run: InstallRun): Promise<number> {
  const { host, options } = run;
  const names = options.all ? await allNames(run) : options.names;
  const prepared: PreparedJob[] = [];
  for (const name of names) prepared.push(await prepareJob(run, name));
  const reports = prepared.flatMap((p) => p.kind === "report" ? [p.report] : []);
  const ready = prepared.filter((p) => p.kind === "ready");
  const others = prepared.filter((p) => p.kind === "hand over");
  const changesNothing = isLooking(options) || ready.length + others.length === 0;
  const refusal = options.yes || changesNothing ? undefined : await ask(run, ready);
  const statuses: number[] = [];
  if (refusal) reports.push(...refusedReports([...ready, ...others], refusal));
  else {
    const carriedOut = () => carryOutAll(run, ready).catch((error: unknown) => refusedReports(ready, error));
    if (!options.dryRun) reports.push(...await carriedOut());
    else for (const job of ready) reports.push(await planned(run, job));
    for (const theirs of Map.groupBy(others, (o) => o.plist ?? o.uid).values()) {
      const failed = failedIn(reports);
      const answer = failed
        ? theirs.map(({ name }) => notTried(name, failed))
        : await handOver(run, theirs).catch((error: unknown) => refusedReports(theirs, error));
      if (typeof answer === "number") statuses.push(answer);
      else reports.push(...answer);
    }
  }
  reports.sort((a, b) => names.indexOf(a.name) - names.indexOf(b.name));
  const done = reports.filter((r) => r.status === EXIT.done);
  const text = options.print ? done.map((r) => r.diff).join("") : formatJobs(reports, options.dryRun);
  // A look at no job at all is not green.
  const isNone = statuses.length === 0 && reports.every((r) => r.state === "not tried");
  if (options.role === "check" && isNone) statuses.push(EXIT.noInstance);
  const lost = host.stdout(options.json ? jobsToJson(options.role, reports) : text);
  if (lost !== undefined) host.stderr(`lima-guard: Cannot write the result: ${lost}\n`);
  if (options.print && !options.json) host.stderr(formatJobs(reports.filter((r) => !done.includes(r)), false));
  return worst([...reports.map((r) => r.status), ...statuses, ...lost === undefined ? [] : [EXIT.failed]]);
}

// ────────────────────────────────────────────────────────────────────────────────── the real host ──

/** The machine itself. dax asks and shows progress; Deno's own commands can end a whole process group, dax's cannot. */
export function realInstallHost(settings: { readonly canAsk: boolean; readonly isVerbose: boolean }): InstallHost {
  const machine = realHost();
  const { os, uid } = machine;
  const before = Deno.env.toObject();
  const cwd = Deno.cwd();
  const here = import.meta.dirname;
  const host: InstallHost = {
    ...machine,
    arch: Deno.build.arch,
    canAsk: settings.canAsk,
    limits: INSTALL_LIMITS,
    folders: realFolders(os, uid, before["HOME"] || "/nonexistent"),
    self: Deno.build.standalone ? { binary: Deno.execPath() } : here === undefined ? {} : { folder: here },
    magic: ["cffaedfe", "cafebabe", "7f454c46"],
    tool: (name) => TOOL_PATHS[name],
    env: (name) => before[name],
    settle: () => settle(before),
    // By functions: a folder may have `$&` in its name.
    absolute: (path) => path.replace(/^~(?=\/)/, () => before["HOME"] ?? "").replace(/^(?!\/)/, () => `${cwd}/`),
    ...realFiles,
    lock: (folder) => lockFile(join(folder, uid === 0 ? "lima-guard-install.lock" : ".lima-guard-install.lock")),
    random: () => crypto.getRandomValues(new Uint8Array(4)).toHex(),
    alive: (pid) => machine.alive(pid) !== "no",
    run: (argv, options) => {
      const words = options.words ?? (settings.isVerbose ? argv.map(quote).join(" ") : undefined);
      if (words !== undefined) machine.stderr(`$ ${words}\n`);
      return runToLimit(machine, argv, options.limitMs);
    },
    handOver: (argv, passesOn) => runWithTerminal(machine, argv, passesOn),
    compile: (folder) => compileHere(host, folder, before),
    ...realPerson(settings.canAsk),
  };
  return host;
}

/** What a person sees and sends, and the packages, which are read only when they are needed. */
function realPerson(canAsk: boolean) {
  return {
    confirm: async (question: string) => (await import("npm:dax@0.49.0")).$.confirm(question, { default: false }),
    progress: (text: string) => {
      if (!canAsk) return { finish: () => {} };
      const shown = import("npm:dax@0.49.0").then(({ $ }) => $.progress(text));
      return { finish: () => void shown.then((progress) => progress.finish()) };
    },
    onSignal,
    plistReader: async () => (await import("npm:plist@5.0.0")).parse as PlistReader,
    unifiedDiff: async (path: string, a: string, b: string) =>
      (await import("npm:diff@9.0.0")).createTwoFilesPatch(path, path, a, b).replace(/^=+\n/, ""),
  };
}

function realFolders(os: InstallHost["os"], uid: number, home: string): InstallHost["folders"] {
  return {
    daemons: "/Library/LaunchDaemons",
    guards: ["/usr/local/libexec", "/Library/PrivilegedHelperTools"],
    boot: ["/", "/Library"],
    log: uid === 0 ? "/var/log" : join(home, "Library/Logs"),
    own: uid !== 0 ? home : os === "darwin" ? "/var/db" : "/run",
    programs: ["/opt/homebrew/bin", "/usr/local/bin", "/opt/local/bin"],
  };
}

/** What a person may send in the middle: then the old job is put back before we leave. */
const SIGNALS: readonly Deno.Signal[] = ["SIGINT", "SIGTERM", "SIGHUP"];

function onSignal(take: () => void): () => void {
  for (const signal of SIGNALS) Deno.addSignalListener(signal, take);
  return () => SIGNALS.forEach((signal) => Deno.removeSignalListener(signal, take));
}

/** umask, working directory and environment of our own: nothing of the caller's decides what is made or run. */
function settle(before: Readonly<Record<string, string>>): void {
  Deno.umask(0o022);
  Deno.chdir("/");
  const kept = ["TERM", "LANG", "HOME", "NO_COLOR"];
  for (const name of Object.keys(before)) if (!kept.includes(name)) Deno.env.delete(name);
  Deno.env.set("PATH", OWN_PATH);
}

/** Started in a process group of its own: at the limit all of it is killed. A signal shows as -1, no program as 127. */
async function runToLimit(machine: Host, argv: Argv, limitMs: number): Promise<Answer> {
  const ran = await machine.run({ argv }, limitMs);
  if (ran.ok) return { argv, ...ran.ok, code: ran.ok.signal === undefined ? ran.ok.code : -1, late: false };
  const late = ran.trouble === "limit";
  return { argv, code: late ? -1 : 127, stdout: "", stderr: late ? "" : ran.why, late };
}

/** With the terminal, for a password and a question; stdout is read, and passed on as it comes. */
async function runWithTerminal(machine: Host, [program, ...args]: Argv, passesOn: boolean) {
  const child = new Deno.Command(program, { args, stdin: "inherit", stdout: "piped", stderr: "inherit" }).spawn();
  const silence = onSignal(() => {});
  let stdout = "";
  for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
    stdout += text;
    if (passesOn) machine.stdout(text);
  }
  const { code } = await child.status;
  silence();
  return { code, stdout };
}

const realFiles = {
  stat: lookAtPath,
  read: readRegular,
  create: createFile,
  append: appendToFile,
  rename: (from: string, to: string) => Deno.renameSync(from, to),
  link: (from: string, to: string) => Deno.linkSync(from, to),
  remove: (path: string) => Deno.removeSync(path),
  makeFolder: (path: string, mode: number) => Deno.mkdirSync(path, { mode }),
  sync: (folder: string) => {
    using file = Deno.openSync(folder);
    file.syncSync();
  },
};

function lookAtPath(path: string): Looked {
  try {
    const { isSymlink, isFile, isDirectory, uid, gid, mode, dev, ino, size } = Deno.lstatSync(path);
    const kind = isSymlink ? "link" : isFile ? "file" : isDirectory ? "directory" : "other";
    const numbers = { uid: uid ?? -1, gid: gid ?? -1, mode: (mode ?? 0) & 0o7777, dev, ino: ino ?? 0, size };
    return { path, kind, ...numbers, ...isSymlink ? { target: Deno.readLinkSync(path) } : {} };
  } catch (error) {
    const code = error instanceof Error && "code" in error ? String(error.code) : "";
    // Deno itself looks at nothing in /dev and /proc without more permissions. EINVAL: it was a link a moment ago.
    if (error instanceof Deno.errors.NotCapable || ["EACCES", "EPERM", "EINVAL"].includes(code)) return "denied";
    if (["ENOENT", "ENOTDIR"].includes(code)) return "absent";
    throw error;
  }
}

/** Never waits: a FIFO, also one that has just taken the place of a file, is opened without a writer, and not read. */
function readRegular(path: string, most: number): Uint8Array | undefined {
  let fd: number;
  try {
    fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
  } catch (error) {
    if (error instanceof Error && "code" in error) return undefined;
    throw error;
  }
  try {
    const info = fs.fstatSync(fd);
    if (!info.isFile()) return undefined;
    const bytes = new Uint8Array(Math.min(most, info.size + 1));
    let filled = 0;
    for (let n = 1; n > 0 && filled < bytes.length; filled += n) {
      n = fs.readSync(fd, bytes, filled, bytes.length - filled, null);
    }
    return bytes.subarray(0, filled);
  } finally {
    fs.closeSync(fd);
  }
}

/** Exclusive, so that no link is followed; mode and group by the descriptor, never by a path. */
function createFile(path: string, bytes: Uint8Array, mode: number, gid: number): void {
  const fd = fs.openSync(path, "wx", mode);
  try {
    for (let sent = 0; sent < bytes.length;) sent += fs.writeSync(fd, bytes, sent);
    if (gid >= 0 && fs.fstatSync(fd).gid !== gid) changeGroup(fd, gid);
    fs.fsyncSync(fd);
  } catch (error) {
    Deno.removeSync(path);
    throw error;
  } finally {
    fs.closeSync(fd);
  }
}

/** Never through a link, which O_NOFOLLOW does not see under Deno's permissions; and never to what waits for a reader. */
function appendToFile(path: string, text: string): void {
  const look = lookAtPath(path);
  const { O_APPEND, O_NONBLOCK, O_WRONLY } = fs.constants;
  const fd = fs.openSync(path, look === "absent" ? "ax" : O_APPEND | O_NONBLOCK | O_WRONLY, 0o644);
  try {
    const info = fs.fstatSync(fd);
    const isSame = look === "absent" || (isThere(look) && look.ino === info.ino && look.dev === info.dev);
    const isOwn = info.isFile() && info.uid === Deno.uid() && info.nlink === 1;
    if (!isSame || !isOwn) throw new Error(`${path} is not a file of this user's alone`);
    fs.writeSync(fd, text);
  } finally {
    fs.closeSync(fd);
  }
}

function changeGroup(fd: number, gid: number): void {
  try {
    fs.fchownSync(fd, Deno.uid() ?? -1, gid);
  } catch (error) {
    // A group that we are not in: launchd asks for the owner and the mode, not for the group.
    if (!(error instanceof Error && "code" in error && error.code === "EPERM")) throw error;
  }
}

/** One lock for all installs of one user: in a folder of his own, and not readable for others, who could hold it. */
export function lockFile(path: string): { close(): void } | { pid: string } {
  const look = lookAtPath(path);
  const isOwn = isThere(look) && look.kind === "file" && look.uid === Deno.uid();
  const hint = `ls -l ${quote(path)}`;
  if (look !== "absent" && !isOwn) {
    throw new Refusal(`Cannot take the lock ${path}: it is not a file of this user`, hint);
  }
  let file: Deno.FsFile;
  try {
    file = Deno.openSync(path, { read: true, write: true, create: true, mode: 0o600 });
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    throw new Refusal(`Cannot take the lock ${path}: ${error.message}`, hint, EXIT.tryAgain);
  }
  if (file.tryLockSync(true)) {
    file.truncateSync();
    file.writeSync(new TextEncoder().encode(`${Deno.pid}\n`));
    return { close: () => file.close() };
  }
  const bytes = new Uint8Array(16);
  const read = file.readSync(bytes) ?? 0;
  file.close();
  return { pid: new TextDecoder().decode(bytes.subarray(0, read)).trim() || "unknown" };
}

/** What a compiled guard may do; no question, no code cache. tools/compile.ts bakes in the same, with the reasons. */
export const BAKED_IN: readonly string[] = [
  "--no-prompt",
  "--no-code-cache",
  ...["read", "write", "net", "env", "run", "sys"].map((permission) => `--allow-${permission}`),
];

/** `deno task compile` in small: this machine's target only. It downloads Deno's runtime the first time. */
async function compileHere(host: InstallHost, folder: string, env: Record<string, string>): Promise<string | Answer> {
  const output = join(folder, "dist", `${GUARD_NAME}-${Deno.build.target}`);
  const [script, installer] = [join(folder, "lima_guard.ts"), join(folder, "install.ts")];
  const args = ["compile", "--quiet", ...BAKED_IN, "--output", output, "--include", installer, script];
  const kept = Object.entries(env).filter(([name]) => /^(DENO|DENORT|HTTPS?_PROXY|NPM)/.test(name));
  const argv: Argv = ["/usr/bin/env", ...kept.map((entry) => entry.join("=")), Deno.execPath(), ...args];
  const answer = await host.run(argv, { limitMs: host.limits.compileMs, words: argv.map(quote).join(" ") });
  return answer.code === 0 ? output : answer;
}

// ─────────────────────────────────────────────────────────────────────── the command line, and main ──

/** Every option there is, in the order of the help text. */
export const INSTALL_OPTIONS = [
  { flag: "install", text: "let launchd run lima-guard (this is the default)" },
  { flag: "check", text: "is it so, in the file and as loaded, and will it start? 1 if not" },
  { flag: "uninstall", text: "give the old plist back; the job of an instance that is gone is removed" },
  { flag: "all", text: "every job that starts an instance: root's daemons, or the user's login agents too" },
  { flag: "plist", argument: "FILE", text: "this plist (for Colima INSTANCE is colima or colima-PROFILE)" },
  { flag: "guard", argument: "PATH", text: "use this compiled lima-guard in its place" },
  {
    flag: "guard-dir",
    argument: "DIR",
    text: "where lima-guard is put (default: /usr/local/libexec; login agent: ~/.local/libexec)",
  },
  { flag: "sign", argument: "IDENTITY", text: "sign the lima-guard that is put there (codesign --sign)" },
  { flag: "keep-alive", text: "add KeepAlive {SuccessfulExit: false} where there is no KeepAlive" },
  {
    flag: "exit-timeout",
    argument: "SECONDS",
    text: `set ExitTimeOut to just this (default: at least ${EXIT_TIMEOUT_S})`,
  },
  { flag: "on-event", argument: "PROGRAM", text: "let the job run this program at each event" },
  { flag: "no-on-event", text: "let the job run no program at events any more" },
  { flag: "lima-home", argument: "DIR", text: "where the instance is (default: what the plist says)" },
  { flag: "start", text: "enable and load a job that is off (otherwise it stays off)" },
  { flag: "restart", text: "stop and load the job again, also where its file is as wanted (after an upgrade)" },
  { flag: "downgrade", text: "replace a newer lima-guard" },
  { flag: "no-reload", text: "change the file only; it counts from the next boot or login on" },
  { flag: "purge", text: "--uninstall: remove lima-guard and what it has left, once no job needs it" },
  { flag: "print", text: "print the finished plist on stdout, write nothing" },
  { flag: "dry-run", short: "n", text: "print the changes and the commands, write nothing" },
  { flag: "yes", text: "do not ask" },
  { flag: "json", text: "one JSON document on stdout" },
  { flag: "verbose", short: "v", text: "print every command, those that only look too" },
  { flag: "help", short: "h", text: "print this and exit" },
  { flag: "version", short: "V", text: "print the version and exit" },
] as const;

const TASKS = ["install", "check", "uninstall"] as const;
/** Options that become no option of a run by themselves. */
const APART = [...TASKS, "help", "version"] as const;

type Camel<F extends string> = F extends `${infer A}-${infer B}` ? `${A}${Capitalize<Camel<B>>}` : F;
type Row = typeof INSTALL_OPTIONS[number];
type Valued = Exclude<Extract<Row, { argument: string }>["flag"], "exit-timeout">;
type Switch = Exclude<Exclude<Row, { argument: string }>["flag"], typeof APART[number]>;

/** What the command line asks for. */
export type InstallOptions =
  & { readonly role: typeof TASKS[number]; readonly names: readonly string[]; readonly exitTimeoutS?: number }
  & { readonly [F in Valued as Camel<F>]?: string }
  & { readonly [F in Switch as Camel<F>]: boolean };

function keyOf(flag: string): keyof InstallOptions {
  const key = flag === "exit-timeout" ? "exit-timeout-s" : flag;
  return key.replaceAll(/-(.)/g, (_, letter) => letter.toUpperCase()) as keyof InstallOptions;
}

const INSTALL_LINE = commandLine(INSTALL_OPTIONS);

/** The text of `--help`. */
export function installHelp(): string {
  return `lima-guard ${VERSION}: let launchd run lima-guard instead of limactl

usage: lima-guard --install INSTANCE… | --all
       lima-guard --check INSTANCE… | --all
       lima-guard --uninstall INSTANCE… | --all
       deno run -P install.ts [--check | --uninstall] INSTANCE…

${INSTALL_LINE.rows(24)}

Exit statuses: 0 done, or nothing to do; 1 refused, rolled back, or (--check) not guarded; 64 usage;
66 no plist; 75 could not find out: try again; 77 not permitted.

Under the hood: plutil -lint · launchctl print, print-disabled, bootout, enable, bootstrap, kickstart ·
codesign --verify · lima-guard --version, --stop · for a daemon, where this is not root: one sudo for the whole command

Try: lima-guard --install --dry-run default
`;
}

/** Reads the arguments: what to do, a text to print, or what is wrong with them. Touches nothing. */
export function parseInstallArgs(
  args: readonly string[],
): InstallOptions | { print: string } | { usage: string; hint?: string } {
  const given = INSTALL_LINE.read(args);
  if ("usage" in given) return given;
  const { has, value, words } = given;
  if (has("help")) return { print: installHelp() };
  if (has("version")) return { print: `lima-guard ${VERSION}\n` };
  const roles = TASKS.filter(has);
  if (roles.length > 1) return { usage: `Cannot do --${roles.join(" and --")} at once` };
  const empty = INSTALL_OPTIONS.find((o) => "argument" in o && value(o.flag) === "");
  if (empty !== undefined) return { usage: `--${empty.flag} needs a value` };
  const timeout = value("exit-timeout");
  if (timeout !== undefined && !(/^\d{1,4}$/.test(timeout) && Number(timeout) > 0 && Number(timeout) <= 3600)) {
    const why = "it is a whole number of seconds, 1 to 3600";
    return { usage: `Cannot take ${JSON.stringify(timeout)} as --exit-timeout: ${why}` };
  }
  const values = INSTALL_OPTIONS.flatMap((o): [string, unknown][] => {
    if (APART.some((flag) => flag === o.flag)) return [];
    if (!("argument" in o)) return [[keyOf(o.flag), has(o.flag)]];
    const text = value(o.flag)?.replace(/(?<=.)\/+$/, "");
    return text === undefined ? [] : [[keyOf(o.flag), o.flag === "exit-timeout" ? Number(text) : text]];
  });
  const options = { role: roles[0] ?? "install", names: words, ...Object.fromEntries(values) };
  const usage = misuse(options as unknown as InstallOptions);
  return usage === undefined ? options as unknown as InstallOptions : { usage };
}

function misuse(o: InstallOptions): string | undefined {
  if (o.all && o.names.length > 0) return "Cannot take --all and instance names at once";
  if (!o.all && o.names.length === 0) return "No instance is named";
  if (o.plist !== undefined && (o.all || o.names.length !== 1)) return "--plist goes with just one instance";
  if (o.guard !== undefined && (o.guardDir !== undefined || o.sign !== undefined)) {
    return "--guard is used in its place: --guard-dir and --sign do not go with it";
  }
  if (o.purge && o.role !== "uninstall") return "--purge goes with --uninstall";
  if (o.noOnEvent && o.onEvent !== undefined) return "Cannot take --on-event with --no-on-event";
  if (o.noReload && (o.start || o.restart)) return "Cannot take --no-reload with --start or --restart";
  const bad = o.names.find((name) => nameTrouble(name) !== undefined);
  return bad === undefined ? undefined : `Cannot take ${JSON.stringify(bad)} as instance name: ${nameTrouble(bad)}`;
}

/** Relative paths and `~/` are the caller's: made absolute before the working directory becomes `/`. */
function absolutePaths(options: InstallOptions, host: InstallHost): InstallOptions {
  const keys = ["plist", "guard", "guardDir", "limaHome", "onEvent"] as const;
  const paths = keys.flatMap((key) => options[key] === undefined ? [] : [[key, host.absolute(options[key])] as const]);
  return { ...options, ...Object.fromEntries(paths) };
}

/** The identity of this boot: a job that was booted out in another one is off. Off a Mac nothing is noted. */
async function bootIdentity(host: InstallHost): Promise<string> {
  if (host.os !== "darwin") return "";
  const answer = await askTool({ host }, "sysctl", "-n", "kern.bootsessionuuid");
  return answer.code === 0 && answer.stdout.trim() !== "" ? answer.stdout.trim() : UNKNOWN_BOOT;
}

/** Installs, checks or uninstalls, as the arguments say. Returns the exit status. */
export async function installMain(args: readonly string[], given?: InstallHost): Promise<number> {
  const asked = parseInstallArgs(args);
  const isJson = args.includes("--json");
  const canAsk = Deno.stdin.isTerminal() && Deno.stderr.isTerminal();
  const host = given ?? realInstallHost({ canAsk, isVerbose: "verbose" in asked && asked.verbose });
  const role = ["check", "uninstall"].find((task) => args.includes(`--${task}`)) ?? "install";
  if (!("role" in asked) && "print" in asked) {
    host.stdout(isJson ? jobsToJson(role, [], { status: EXIT.done, text: asked.print }) : asked.print);
    return EXIT.done;
  }
  const refuse = (because: string, hint: string, status: number) => {
    const blockers = [{ what: "command line", because, hint }];
    if (isJson) host.stdout(jobsToJson(role, [], { status, error: { what: because, hint }, blockers }));
    host.stderr(`lima-guard: ${because} (hint: ${hint})\n`);
    return status;
  };
  if ("usage" in asked) return refuse(asked.usage, asked.hint ?? "lima-guard --install --help", EXIT.usage);
  const options = absolutePaths(asked, host);
  for (const name of ["LIMA_HOME", "COLIMA_HOME", "XDG_CONFIG_HOME"]) {
    if (host.env(name) !== undefined && options.limaHome === undefined && options.role === "install") {
      host.stderr(`lima-guard: ${name} of this shell is not used (hint: --lima-home DIR)\n`);
    }
  }
  host.settle();
  const actor = { uid: host.uid, boot: await bootIdentity(host), tool: host.tool };
  try {
    const fresh = { placed: new Set<string>(), sources: new Map(), leaving: new Set<string>() };
    return await runCommand({ host: await inOwnFolders(host), options, actor, ...fresh });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return refuse(error.message, error.hint ?? "lima-guard --install --help", error.status);
  }
}

if (import.meta.main) {
  const print = (text: string) => Deno.stderr.writeSync(new TextEncoder().encode(text));
  // An internal error must not leave a job half-way: reported, and the run continues.
  for (const kind of ["error", "unhandledrejection"] as const) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      const cause = "reason" in event ? event.reason : (event as ErrorEvent).error;
      print(`lima-guard: internal error: please report it: ${cause?.stack ?? cause}\n`);
    });
  }
  const ask = Deno.stdin.isTerminal() ? "request" : "query";
  const missing: string[] = [];
  for (const name of ["read", "write", "env", "run", "sys", "net"] as const) {
    if ((await Deno.permissions[ask]({ name })).state !== "granted") missing.push(name);
  }
  const why = `Cannot start without permission for ${missing.join(", ")}`;
  if (missing.length > 0) print(`lima-guard: ${why} (hint: deno run -P install.ts …)\n`);
  Deno.exit(missing.length > 0 ? EXIT.denied : await installMain(Deno.args));
}

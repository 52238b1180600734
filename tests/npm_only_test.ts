// The stand-ins of tools/npm_only against the packages that @std's functions were ported from, against @std itself where
// JSR can be reached, and the launcher that chooses between the two.
import assert from "node:assert/strict";
import { posix } from "node:path";
import fc from "fast-check";
import minimist from "minimist";
import { parseArgs as importedParseArgs } from "jsr:@std/cli@1.0.29/parse-args";
import { basename as importedBasename } from "jsr:@std/path@1.1.4/posix/basename";
import { dirname as importedDirname } from "jsr:@std/path@1.1.4/posix/dirname";
import { join as importedJoin } from "jsr:@std/path@1.1.4/posix/join";
import { BaseHandler } from "../tools/npm_only/base_handler.ts";
import { basename } from "../tools/npm_only/basename.ts";
import { dirname } from "../tools/npm_only/dirname.ts";
import { join } from "../tools/npm_only/join.ts";
import { Logger } from "../tools/npm_only/logger.ts";
import { parseArgs } from "../tools/npm_only/parse_args.ts";

const PROJECT = `${import.meta.dirname}/..`;
const MAP = "tools/npm_only/import_map.json";
const RUNS = { numRuns: 2000 };
const hasJsr = importedJoin !== join;

// ---------------------------------------------------------------------------------------------------------- parseArgs

const FLAGS = {
  boolean: ["pre", "stop", "all", "json", "verbose"],
  string: ["_", "lima-home", "timeout"],
  alias: { v: "verbose", h: "help" },
  default: { timeout: "60" },
};
type Parsed = { flags: Record<string, unknown>; asked: string[] };

/** The result and what `unknown` was asked about; undeclared flags are refused as the guard refuses them. */
function parsedBy(parse: (argv: string[], options: Record<string, unknown>) => unknown, argv: string[], extra = {}) {
  const asked: string[] = [];
  const unknown = (arg: string) => asked.push(arg) > 0 && !/^-./.test(arg);
  const flags = parse(argv, { ...FLAGS, ...extra, unknown }) as Parsed["flags"];
  return { flags: { ...flags }, asked };
}

/** minimist makes a list of a flag that is given twice; @std takes the last one. */
function byMinimist(argv: string[], extra = {}): Parsed {
  const { flags, asked } = parsedBy(minimist, argv, extra);
  const last = ([name, value]: [string, unknown]) =>
    name === "_" || name === "--" || !Array.isArray(value) ? [name, value] : [name, value.at(-1)];
  return { flags: Object.fromEntries(Object.entries(flags).map(last)), asked };
}

const AS_MINIMIST: [line: string, extra?: Record<string, unknown>][] = [
  [""],
  ["--pre default"],
  ["--pre default docker k3s"],
  ["default --pre docker"],
  ["--stop --all --json"],
  ["--pre --lima-home /Volumes/vm/lima default"],
  ["--pre --lima-home=/Volumes/vm/lima default"],
  ["--stop --timeout 5 default"],
  ["--stop --timeout=5 --timeout=7 default"],
  ["--stop default --timeout"],
  ["--stop --timeout= default"],
  ["--stop --timeout --all default"],
  ["--pre 42 1e3 0x10"],
  ["--pre true"],
  ["--json false default"],
  ["--json=false default"],
  ["-v --pre default"],
  ["-vh default"],
  ["-vx default"],
  ["-v5 -h=3"],
  ["-h5. -v"],
  ["--pre -h - default"],
  ["--help"],
  ["--nonsense default"],
  ["--nonsense=5 --pre default"],
  ["-x -y-"],
  ["-a!"],
  ["--pre default -- limactl start --foreground", { "--": true }],
  ["--pre default -- limactl --all", { "--": false }],
  ["--pre -- -- --stop", { "--": true }],
  ["--pre default --stop docker", { stopEarly: true }],
  ["- default"],
  ["--timeout -5"],
  ["--pre 42 0x10 1e3 5.", { string: [] }],
  ["--lima-home 0x10 -n 7", { string: "_" }],
];

for (const [line, extra] of AS_MINIMIST) {
  Deno.test(`parseArgs() reads "${line}"${extra ? ` with ${JSON.stringify(extra)}` : ""} as minimist does`, () => {
    const argv = line.split(" ").filter((word) => word !== "");
    assert.deepEqual(parsedBy(parseArgs, argv, extra), byMinimist(argv, extra));
  });
}

// Where @std has left minimist: what is expected here is what @std/cli 1.0.29 answers.
const DEFAULTS = { pre: false, stop: false, all: false, json: false, verbose: false, v: false, timeout: "60" };
const AS_STD: [name: string, argv: string[], flags: Record<string, unknown>, asked: string[], extra?: object][] = [
  ["does not negate --no-pre", ["--no-pre"], { _: [] }, ["--no-pre"]],
  ["loses the no- of --no-timeout=5", ["--no-timeout=5"], { _: [], timeout: "5" }, []],
  ["takes --= for a flag", ["--=x"], { _: [] }, ["--=x"]],
  ["leaves an empty word after a flag alone", ["--timeout", ""], { _: [""], timeout: "" }, [""]],
  ["leaves a dash after a flag alone", ["--nix", "-"], { _: ["-"] }, ["--nix", "-"]],
  ["takes --pre= for true", ["--pre="], { _: [], pre: true }, []],
  ["sees a number between blanks", ["--help= 5 "], { _: [], h: 5, help: 5 }, []],
  ["gives -vx=3 to the first letter", ["-vx=3"], { _: [], v: 3, verbose: 3 }, []],
  ["loses the instances to --_=x", ["default", "--_=x"], { _: "x", "--": [] }, ["default"], { "--": true }],
  ["takes any value but false for true in a boolean's alias", ["--v=a"], { _: [], v: true, verbose: true }, []],
  [
    "collects a flag that is given twice",
    ["--tag", "a", "--tag=b", "--pre"],
    { _: [], pre: true, tag: ["a", "b"] },
    [],
    { collect: "tag" },
  ],
  ["collects nothing into lists", [], { _: [], json: [], tag: [] }, [], { collect: ["tag", "json"], string: "tag" }],
];

for (const [name, argv, flags, asked, extra] of AS_STD) {
  Deno.test(`parseArgs() ${name}, as @std does`, () => {
    const expected = { flags: { ...DEFAULTS, ...flags }, asked };
    assert.deepEqual(parsedBy(parseArgs, argv, extra), expected);
    assert.deepEqual(parsedBy(importedParseArgs, argv, extra), expected);
  });
}

const VALUE = fc.string({ unit: fc.constantFrom("a", "v", "5", ".", "-", "=", "/", "é"), minLength: 1, maxLength: 5 });
const NAME = fc.oneof(
  fc.constantFrom("pre", "stop", "json", "lima-home", "timeout", "verbose", "help", "nix"),
  fc.string({ unit: fc.constantFrom("n", "o", "v", "-", "5"), minLength: 1, maxLength: 4 }),
).filter((name) => !/^(-|no-|v$)/.test(name));
const CLUSTER = fc.string({ unit: fc.constantFrom("v", "h", "x", "5", "/", "-"), minLength: 1, maxLength: 4 });
const WORD = fc.oneof(
  fc.constantFrom("default", "my vm", "42", "1e3", "0x10", "true", "false", "--"),
  VALUE.filter((value) => !value.startsWith("-")),
  NAME.map((name) => `--${name}`),
  fc.tuple(NAME, VALUE).map(([name, value]) => `--${name}=${value}`),
  CLUSTER.filter((letters) => !letters.startsWith("-")).map((letters) => `-${letters}`),
  fc.tuple(fc.constantFrom("v", "h", "x"), VALUE).map(([letter, value]) => `-${letter}=${value}`),
);
const ARGV = fc.array(WORD, { maxLength: 6 });
const EXTRA = fc.record({ "--": fc.boolean(), stopEarly: fc.boolean() });

Deno.test("parseArgs() reads generated arguments as minimist does", () => {
  fc.assert(
    fc.property(ARGV, EXTRA, (argv, extra) => {
      assert.deepEqual(parsedBy(parseArgs, argv, extra), byMinimist(argv, extra));
    }),
    RUNS,
  );
});

Deno.test({
  name: "parseArgs() reads generated arguments as @std does",
  ignore: !hasJsr,
  fn() {
    const words = fc.array(
      fc.oneof(WORD, fc.constantFrom("", "-", "---", "--no-pre", "--no-nix=5", "-vx=3", "--pre=")),
    );
    fc.assert(
      fc.property(words, EXTRA, fc.constantFrom([], ["timeout"], "v"), (argv, extra, collect) => {
        const all = { ...extra, collect };
        assert.deepEqual(parsedBy(parseArgs, argv, all), parsedBy(importedParseArgs, argv, all));
      }),
      RUNS,
    );
  },
});

// --------------------------------------------------------------------------------------------------------------- paths

const PATH = fc.string({ unit: fc.constantFrom("/", "/", ".", "a", "b", "é", " "), maxLength: 9 });

/** Node's answers, except three: @std gives "/" and a name that is all suffix back, and ends no parent with a slash. */
const NODE = {
  basename: (path: string, suffix = "") => posix.basename(path, suffix) || posix.basename(path) || path.slice(0, 1),
  dirname: (path: string) => posix.dirname(path).replace(/(?<=.)\/+$/, "").replace(/^\/+$/, "/"),
  join: posix.join,
};

const PATHS = [
  "",
  "/",
  "//",
  ".",
  "..",
  "/a",
  "a",
  "a/b",
  "/a/b/",
  "a//b",
  "//a//b//",
  "/../a",
  "../../a/./b/..",
  "a/..",
];
for (const path of PATHS) {
  Deno.test(`basename(), dirname() and join() take "${path}" apart as node:path does`, () => {
    assert.equal(basename(path), NODE.basename(path));
    assert.equal(dirname(path), NODE.dirname(path));
    assert.equal(join(path), NODE.join(path));
    assert.equal(join(path, "", "ha.pid"), NODE.join(path, "", "ha.pid"));
  });
}

Deno.test("basename(), dirname() and join() take generated paths apart as node:path does", () => {
  fc.assert(
    fc.property(PATH, fc.array(PATH, { maxLength: 3 }), (path, more) => {
      assert.equal(basename(path), NODE.basename(path));
      assert.equal(basename(`${path}.pid`, ".pid"), NODE.basename(`${path}.pid`, ".pid"));
      assert.equal(dirname(path), NODE.dirname(path));
      assert.equal(join(path, ...more), NODE.join(path, ...more));
    }),
    RUNS,
  );
});

Deno.test({
  name: "basename(), dirname() and join() take generated paths apart as @std does",
  ignore: !hasJsr,
  fn() {
    fc.assert(
      fc.property(PATH, PATH, (path, other) => {
        assert.equal(basename(path), importedBasename(path));
        assert.equal(basename(path, other), importedBasename(path, other));
        assert.equal(dirname(path), importedDirname(path));
        assert.equal(join(path, other), importedJoin(path, other));
      }),
      RUNS,
    );
  },
});

// ----------------------------------------------------------------------------------------------------------------- log

Deno.test("Logger drops what is below its level or its handler's, and formats the rest", () => {
  const lines: string[] = [];
  class Lines extends BaseHandler {
    override log(msg: string): void {
      lines.push(msg);
    }
  }
  const handlers = [
    new Lines("WARN"),
    new Lines("NOTSET", { formatter: (r) => `${r.loggerName} ${r.level} ${r.msg}` }),
  ];
  const log = new Logger("guard", "INFO", { handlers });
  assert.equal(log.debug("a"), "a");
  log.info("b");
  log.warn("c");
  log.levelName = "DEBUG";
  log.debug("d");
  assert.deepEqual(lines, ["guard 20 b", "WARN c", "guard 30 c", "guard 10 d"]);
});

// -------------------------------------------------------------------------------------------- import map and launcher

async function importsOf(file: string): Promise<Record<string, string>> {
  return JSON.parse(await Deno.readTextFile(`${PROJECT}/${file}`)).imports;
}

Deno.test("the import map has deno.json's names, a file for every jsr: import of the program, and no more", async () => {
  const imported = new Set<string>();
  for await (const { name } of Deno.readDir(PROJECT)) {
    if (!name.endsWith(".ts")) continue;
    const text = await Deno.readTextFile(`${PROJECT}/${name}`);
    for (const [, from] of text.matchAll(/(?:from|import)[ (]"(jsr:[^"]*)"/g)) imported.add(from!);
  }
  const map = await importsOf(MAP);
  const jsr = Object.keys(map).filter((name) => name.startsWith("jsr:"));
  assert.deepEqual(jsr.sort(), [...imported].sort());
  for (const name of jsr) assert(Deno.statSync(`${PROJECT}/tools/npm_only/${map[name]}`).isFile);
  const others = Object.entries(map).filter(([name]) => !jsr.includes(name));
  assert.deepEqual(Object.fromEntries(others), await importsOf("deno.json"));
});

async function deno(args: string[], env: Record<string, string> = {}) {
  const command = new Deno.Command(Deno.execPath(), { args, env: { NO_COLOR: "1", ...env }, cwd: PROJECT });
  const { code, stdout, stderr } = await command.output();
  const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
  return { code, stdout: text(stdout), stderr: text(stderr) };
}

Deno.test("the guard runs with the import map alone", async () => {
  const ran = await deno(["run", "-A", "--no-lock", "--import-map", MAP, "lima_guard.ts", "--version"]);
  assert.match(ran.stdout, /^lima-guard \d/);
  assert.equal(ran.code, 0, ran.stderr);
});

Deno.test("the launcher never falls back where JSR_URL is set", async () => {
  // A port that was free a moment ago: no process answers there.
  const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const mirror = `http://127.0.0.1:${listener.addr.port}`;
  listener.close();
  const cache = await Deno.makeTempDir({ prefix: "lg-" });
  try {
    const args = ["run", "-A", "--no-lock", "tools/task.ts", "test", "tests/npm_only_test.ts", "--no-run"];
    const ran = await deno(args, { JSR_URL: mirror, DENO_DIR: cache });
    assert.notEqual(ran.code, 0);
    assert.match(ran.stderr, new RegExp(`${mirror}/@std/`));
    assert.doesNotMatch(ran.stderr, /stand-ins/);
  } finally {
    await Deno.remove(cache, { recursive: true });
  }
});

Deno.test("the launcher refuses a task that it does not have", async () => {
  const ran = await deno(["run", "-A", "--no-lock", "tools/task.ts", "tset"]);
  assert.equal(ran.code, 64);
  assert.match(ran.stderr, /Cannot run task "tset": the tasks are ok, test, /);
});

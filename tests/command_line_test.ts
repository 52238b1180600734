/** Arguments to invocation: what is understood, and what is refused before anything is touched. */

import assert from "node:assert/strict";
import fc from "fast-check";
import { type Host, main, parseCommandLine, VERSION } from "../lima_guard.ts";
import type { Invocation } from "./facts.ts";

/** Arguments, split at blanks where that says it all. */
function argv(args: string | readonly string[]): readonly string[] {
  return typeof args === "string" ? args.split(" ").filter((arg) => arg !== "") : args;
}

/** What is asked for where nothing else is said. */
function invocation(role: Invocation["role"], names: readonly string[], more: Partial<Invocation> = {}): Invocation {
  return {
    role,
    names,
    command: [],
    all: false,
    limaHome: undefined,
    budgetS: 60,
    limitS: more.budgetS,
    waitS: undefined,
    onEvent: undefined,
    dryRun: false,
    json: false,
    verbose: false,
    ...more,
  };
}

const START = ["limactl", "start", "k3s", "--foreground"];

for (
  const [args, expected] of [
    ["--pre k3s", invocation("pre", ["k3s"])],
    ["k3s --pre", invocation("pre", ["k3s"])],
    ["--pre default docker k3s", invocation("pre", ["default", "docker", "k3s"])],
    ["--pre docker k3s docker", invocation("pre", ["docker", "k3s"])],
    ["--pre --pre k3s", invocation("pre", ["k3s"])],
    ["--stop k3s docker", invocation("stop", ["k3s", "docker"])],
    ["--stop --all", invocation("stop", [], { all: true })],
    ["--all --stop --timeout 5", invocation("stop", [], { all: true, budgetS: 5 })],
    ["--pre --all", invocation("pre", [], { all: true })],
    ["--status --all", invocation("status", [], { all: true })],
    ["--pre k3s --on-event /x", invocation("pre", ["k3s"], { onEvent: "/x" })],
    ["-n --pre k3s", invocation("pre", ["k3s"], { dryRun: true })],
    ["--pre -nv k3s", invocation("pre", ["k3s"], { dryRun: true, verbose: true })],
    ["--status", invocation("status", [])],
    ["--status k3s k3s --json", invocation("status", ["k3s"], { json: true })],
    ["--pre k3s --dry-run", invocation("pre", ["k3s"], { dryRun: true })],
    ["--dry-run --pre k3s", invocation("pre", ["k3s"], { dryRun: true })],
    ["--json --pre k3s", invocation("pre", ["k3s"], { json: true })],
    ["--verbose --pre k3s", invocation("pre", ["k3s"], { verbose: true })],
    ["-v --pre k3s", invocation("pre", ["k3s"], { verbose: true })],
    ["--pre -v k3s", invocation("pre", ["k3s"], { verbose: true })],
    ["--pre k3s --lima-home /x", invocation("pre", ["k3s"], { limaHome: "/x" })],
    ["--pre k3s --lima-home=/x=y", invocation("pre", ["k3s"], { limaHome: "/x=y" })],
    [["--pre", "k3s", "--lima-home", "/My VMs"], invocation("pre", ["k3s"], { limaHome: "/My VMs" })],
    ["--pre k3s --lima-home true", invocation("pre", ["k3s"], { limaHome: "true" })],
    ["--lima-home=false k3s --pre", invocation("pre", ["k3s"], { limaHome: "false" })],
    ["--pre -vv k3s", invocation("pre", ["k3s"], { verbose: true })],
    ["--run k3s --dry-run --json -- x", invocation("run", ["k3s"], { command: ["x"], dryRun: true, json: true })],
    ["--pre k3s --lima-home 42", invocation("pre", ["k3s"], { limaHome: "42" })],
    // What looks like a number or a truth value is a name like any other.
    ["--pre 42", invocation("pre", ["42"])],
    ["--pre 1e3 0x10 007 1.0 Infinity", invocation("pre", ["1e3", "0x10", "007", "1.0", "Infinity"])],
    ["--pre true", invocation("pre", ["true"])],
    ["--stop false", invocation("stop", ["false"])],
    ["--pre k3s --dry-run false", invocation("pre", ["k3s", "false"], { dryRun: true })],
    ["-v true --pre", invocation("pre", ["true"], { verbose: true })],
    ["--run k3s -- limactl start k3s --foreground", invocation("run", ["k3s"], { command: START })],
    [
      "--run k3s --timeout 20 -v -- limactl start k3s --foreground",
      invocation("run", ["k3s"], {
        command: START,
        budgetS: 20,
        verbose: true,
      }),
    ],
    // Whatever follows `--` belongs to the command.
    [
      "--run k3s -- x --help --pre=1 -- --json -q",
      invocation("run", ["k3s"], {
        command: ["x", "--help", "--pre=1", "--", "--json", "-q"],
      }),
    ],
    [
      ["--run", "k3s", "--", "My Tools/x", "", "1e3", "007", "true", "a b"],
      invocation("run", ["k3s"], {
        command: ["My Tools/x", "", "1e3", "007", "true", "a b"],
      }),
    ],
    [["--pre", "x".repeat(76)], invocation("pre", ["x".repeat(76)])],
  ] as [string | string[], Invocation][]
) {
  Deno.test(`understood: ${argv(args).join(" ")}`, () => assert.deepEqual(parseCommandLine(argv(args)), expected));
}

for (
  const [text, budgetS] of [["1", 1], ["45.5", 45.5], ["060", 60], ["3600", 3600], ["3600.0", 3600]] as const
) {
  Deno.test(`understood: --timeout ${text}`, () => {
    const expected = invocation("stop", ["k3s"], { budgetS });
    assert.deepEqual(parseCommandLine(["--stop", "k3s", "--timeout", text]), expected);
    assert.deepEqual(parseCommandLine(["--stop", `--timeout=${text}`, "k3s"]), expected);
  });
}

/** Refused; the message names what it is about. */
function refused(args: string | readonly string[], about: string): void {
  Deno.test(`refused: ${JSON.stringify(argv(args).join(" "))}`, () => {
    const parsed = parseCommandLine(argv(args));
    assert.ok("usage" in parsed, `taken for ${JSON.stringify(parsed)}`);
    assert.ok(parsed.usage.includes(about), `${parsed.usage} says nothing of ${about}`);
  });
}

for (
  const [args, about] of [
    ["", "command is given"],
    ["k3s", "command is given"],
    ["--dry-run k3s", "command is given"],
    ["-- --pre k3s", "command is given"],
    ["--all", "command is given"],
    ["--pre --stop k3s", "--pre and --stop"],
    ["--stop --run k3s -- x", "--stop and --run"],
    ["--pre", "No instance"],
    ["--stop", "No instance"],
    ["--stop --dry-run", "No instance"],
    ["--run --all -- x", "--all"],
    ["--status --pre k3s", "--pre and --status"],
    ["--status -- k3s", "`--`"],
    ["--stop --all k3s", "--all"],
    ["--pre=k3s", '"--pre=k3s"'],
    ["--pre= k3s", '"--pre="'],
    ["--stop=true k3s", '"--stop=true"'],
    ["--stop --all=false k3s", '"--all=false"'],
    ["--pre k3s --dry-run=no", '"--dry-run=no"'],
    ["--pre k3s -v=1", '"-v=1"'],
    ["--no-dry-run --pre k3s", '"--no-dry-run"'],
    ["--pre k3s --dryrun", '"--dryrun"'],
    ["--pre k3s --Dry-run", '"--Dry-run"'],
    ["--pre k3s --force", '"--force"'],
    ["--pre k3s --force=1", '"--force=1"'],
    ["--pre k3s --timeouts 5", '"--timeouts"'],
    ["--pre k3s ---json", '"---json"'],
    ["--pre k3s --__proto__ x", '"--__proto__"'],
    ["--pre k3s --json.x y", '"--json.x"'],
    ["--help --force", '"--force"'],
    ["-p k3s", '"-p"'],
    ["-vx --pre k3s", '"-vx"'],
    ["--pre -1", '"-1"'],
    // The parser keeps the positionals under this name.
    ["--pre --_ k3s", '"--_"'],
    ["--pre --_=k3s", '"--_=k3s"'],
    ["--pre -_ k3s", '"-_"'],
    ["--run k3s", "`--`"],
    ["--run k3s limactl start k3s --foreground", '"--foreground"'],
    ["--run k3s limactl start k3s", "--run"],
    ["--run k3s --", "`--`"],
    [["--run", "k3s", "--", ""], "`--`"],
    ["--run -- limactl start k3s", "No instance"],
    ["--run k3s docker -- limactl", "--run"],
    // The command's own output is on stdout.
    ["--run k3s --json -- x", "--json"],
    ["--pre k3s -- docker", "`--`"],
    ["--stop k3s --", "`--`"],
    ["--stop -- --all", "No instance"],
    ["--pre k3s --lima-home", "--lima-home"],
    ["--pre k3s --on-event x", "--on-event"],
    ["--pre k3s --on-event", "--on-event"],
    ["--pre k3s --wait 5", "--wait"],
    ["--status k3s --wait", "--wait"],
    ["--status k3s --wait 0", "--wait"],
    ["--pre k3s --lima-home=", "--lima-home"],
    ["--lima-home --pre k3s", "--lima-home"],
    ["--run k3s --lima-home -- limactl", "--lima-home"],
  ] as [string | string[], string][]
) {
  refused(args, about);
}

for (
  const name of [
    ...[
      ".",
      "..",
      "_config",
      ".hidden",
      "../k3s",
      "/Users/zoe/.lima/k3s",
      "k3s/",
      "~/k3s",
      "a b",
      "",
      " ",
      "-",
      "k3s\n",
    ],
    ...["k3s.yaml", "k3s.YML", "k3s--2", "k3s-", "zoë", "template://default", "x".repeat(77)],
  ]
) {
  refused(["--pre", "docker", name], JSON.stringify(name));
}
for (
  const text of [
    "0",
    "0.99",
    "3600.1",
    "3601",
    "-5",
    "+5",
    "1e3",
    "60s",
    "0x3c",
    "1_000",
    "Infinity",
    "NaN",
    ".5",
    "5.",
    "٦٠",
    " 5",
  ]
) {
  refused(["--stop", "k3s", `--timeout=${text}`], "--timeout");
}
refused("--stop k3s --timeout true", '"true"');
refused("--stop k3s --timeout", "--timeout");
refused("--stop --timeout --all", "--timeout");
refused(["--stop", "k3s", "--timeout="], "--timeout");

for (
  const [args, hint] of [
    ["status", "did you mean --status?"],
    ["help", "did you mean --help?"],
    ["stop k3s", "did you mean --stop?"],
    ["--verison", "did you mean --version?"],
    ["--verbos --pre k3s", "did you mean --verbose?"],
    ["--pre k3s --dryrun", "did you mean --dry-run?"],
    ["--pre k3s --Dry-run", "did you mean --dry-run?"],
    ["-version", "did you mean --version?"],
    ["--instal k3s", "did you mean --install?"],
    ["--stop k3s --timeot=5", "did you mean --timeout=5?"],
    ["--pre=default", "--pre takes names as separate words, as in --pre default"],
    ["--pre=a/b", "--pre takes names as separate words"],
    ["--pre k3s --dry-run=no", "--dry-run takes no value"],
    ["", undefined],
    ["k3s", undefined],
    ["--pre k3s --force", undefined],
    ["-x", undefined],
  ] as [string, string | undefined][]
) {
  Deno.test(`hint for ${JSON.stringify(args)}: ${hint}`, () => {
    const parsed = parseCommandLine(argv(args));
    assert.ok("usage" in parsed, `taken for ${JSON.stringify(parsed)}`);
    assert.equal(parsed.hint, hint);
  });
}

/** A host that has no effects but output: whatever else is asked for fails the test. */
function textHost(env: Record<string, string>) {
  const out = { stdout: "", stderr: "" };
  const host = new Proxy({} as Host, {
    get: (_, member) => {
      if (member === "env") return (name: string) => env[name];
      if (member === "stdout" || member === "stderr") return (text: string) => void (out[member] += text);
      if (member === "uid") return 501;
      if (member === "os") return "linux";
      if (member === "then") return undefined; // it is no promise
      if (member === "columns") return () => undefined;
      if (member === "realPath" || member === "list") return () => ({ trouble: "absent", why: "No such file" });
      if (member === "stat") return () => ({ trouble: "absent", why: "No such file" });
      if (member === "onSignal") return () => {};
      if (member === "run") return () => Promise.resolve({ trouble: "absent", why: "No such file" });
      throw new Error(`host.${String(member)} is used`);
    },
  });
  return { host, out };
}

Deno.test("with --json every command line that starts nothing gets exactly one document", async () => {
  const arg = fc.oneof(
    fc.constantFrom("--pre", "--stop", "--status", "--all", "-v", "-n", "--help", "-V", "--bogus", "--timeout", "5"),
    fc.constantFrom("k3s", "a b", "--lima-home", "/not/there", "--pre=k3s", "--json", "--run"),
  );
  await fc.assert(
    fc.asyncProperty(fc.array(arg, { maxLength: 6 }), fc.boolean(), async (args, hasHome) => {
      const { host, out } = textHost(hasHome ? { HOME: "/home/x" } : {});
      const status = await main(["--json", ...args], host);
      const report = JSON.parse(out.stdout);
      assert.equal(report.version, 1);
      assert.ok([null, "pre", "stop", "run", "status"].includes(report.role));
      assert.ok(Array.isArray(report.instances));
      if (report.status !== undefined) assert.equal(report.status, status);
      if (report.error) assert.ok(report.error.what && out.stderr.includes(report.error.what), out.stderr);
      if (status === 64 && report.instances.length === 0) assert.ok(report.error.hint.includes("lima-guard --help"));
      assert.doesNotMatch(out.stderr, /internal error/);
    }),
    { numRuns: 1000 },
  );
});

for (
  const [args, status, about] of [
    [["--json", "--bogus"], 64, "--bogus"],
    [["--json", "--pre"], 64, "No instance"],
    [["--json", "--status", "--lima-home", "/not/there"], 66, "/not/there"],
    [["--json"], 64, "No command"],
  ] as const
) {
  Deno.test(`one document: ${args.join(" ")}`, async () => {
    const { host, out } = textHost({ HOME: "/home/x" });
    assert.equal(await main(args, host), status);
    const { error, ...rest } = JSON.parse(out.stdout);
    const role = args.includes("--pre" as never) ? "pre" : args.includes("--status" as never) ? "status" : null;
    assert.deepEqual(rest, { version: 1, role, status, instances: [] });
    assert.ok(error.what.includes(about), error.what);
  });
}

Deno.test("lima-guard alone prints what can be typed", async () => {
  const { host, out } = textHost({ HOME: "/home/x" });
  assert.equal(await main([], host), 64);
  assert.equal(out.stdout, "");
  assert.match(out.stderr, /^lima-guard: No command is given \(hint: lima-guard --help\)\nusage: lima-guard --pre /);
});

Deno.test("any arguments are understood or refused, and no name gets in that Lima would not take", () => {
  const arg = fc.oneof(
    fc.string({ maxLength: 12 }),
    fc.constantFrom(
      "--pre",
      "--stop",
      "--run",
      "--all",
      "--",
      "-v",
      "--timeout",
      "5",
      "--lima-home",
      "/x",
      "k3s",
      "--json",
    ),
  );
  fc.assert(
    fc.property(fc.array(arg, { maxLength: 8 }), (args) => {
      const parsed = parseCommandLine(args);
      if ("usage" in parsed) return assert.notEqual(parsed.usage, "");
      if ("install" in parsed) return assert.ok(args.some((a) => /^--(un)?install$|^--check$/.test(a)));
      if ("print" in parsed) return assert.ok(args.some((a) => /^-[-a-z]*[hvV]/.test(a)), parsed.print);
      assert.ok(parsed.names.every((name) => /^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$/.test(name) && args.includes(name)));
      if (parsed.role !== "status") assert.equal(parsed.names.length === 0, parsed.all);
      assert.ok(parsed.budgetS >= 1 && parsed.budgetS <= 3600);
      assert.equal(parsed.command.length > 0, parsed.role === "run");
    }),
    { numRuns: 5000 },
  );
});

// What install.ts does is asked for in the same way; it reads its own options, its --help too.
for (const args of ["--install k3s --yes", "--check --all --json", "k3s --uninstall --dry-run", "--install --help"]) {
  Deno.test(`lima-guard ${args} is for install.ts`, () => {
    assert.deepEqual(parseCommandLine(argv(args)), { install: argv(args) });
  });
}

Deno.test("what stands after -- is a command's own: --install too", () => {
  const parsed = parseCommandLine(argv("--run k3s -- limactl start k3s --foreground --install"));
  assert.ok("role" in parsed && parsed.role === "run", JSON.stringify(parsed));
});

// ── texts ──

const HELP = await Deno.readTextFile(new URL("testdata/help.txt", import.meta.url));
for (const args of ["--help", "-h", "--pre --help", "--help k3s --stop"]) {
  Deno.test(`lima-guard ${args} prints the help text, byte for byte`, () => {
    assert.deepEqual(parseCommandLine(argv(args)), { print: HELP });
    assert.deepEqual(parseCommandLine(["--help"]), { print: HELP });
  });
}

Deno.test("lima-guard -V is --version", () => {
  assert.deepEqual(parseCommandLine(["-V"]), { print: `lima-guard ${VERSION}\n` });
});

Deno.test("lima-guard --version prints what an installer looks for", () => {
  assert.deepEqual(parseCommandLine(["--version"]), { print: `lima-guard ${VERSION}\n` });
  assert.match(VERSION, /^\d+\.\d+\.\d+$/);
});

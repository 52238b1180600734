/** The example scripts, with programs in the place of the real ones that record how they were called. */

import assert from "node:assert/strict";
import * as plist from "npm:plist@5.0.0";
import { parseInstallArgs } from "../install.ts";
import { parseCommandLine } from "../lima_guard.ts";
import { LAST_STOP_KINDS } from "../tools/schema.ts";
import { eventually, isAlive, runGuard, spawnGuard, tempLimaHome } from "./helpers/mod.ts";
import { project } from "./helpers/paths.ts";

const read = (file: string) => Deno.readTextFileSync(`${project}/examples/${file}`);

class Folder implements Disposable {
  readonly path = Deno.makeTempDirSync({ prefix: "lg-ex-" });
  /** A program that records its arguments, one a line, then runs BODY. */
  program(name: string, body = "") {
    const text = `#!/bin/sh\nfor word; do printf '%s\\n' "$word"; done >>'${this.path}/${name}.called'\n${body}\n`;
    Deno.writeTextFileSync(`${this.path}/${name}`, text, { mode: 0o755 });
  }
  called(name: string): string[] | undefined {
    try {
      return Deno.readTextFileSync(`${this.path}/${name}.called`).trimEnd().split("\n");
    } catch (error) {
      if (error instanceof Deno.errors.NotFound) return undefined;
      throw error;
    }
  }
  sh(script: string, args: readonly string[] = [], env: Record<string, string> = {}, stdin = "") {
    const file = `${this.path}/script`;
    Deno.writeTextFileSync(file, script, { mode: 0o755 });
    Deno.writeTextFileSync(`${this.path}/stdin`, stdin);
    const { code, stdout, stderr } = new Deno.Command("sh", {
      args: ["-c", 'exec sh "$@" <"$0"', `${this.path}/stdin`, file, ...args],
      env: { PATH: `${this.path}:/usr/bin:/bin`, ...env },
      clearEnv: true,
      stdin: "null",
    }).outputSync();
    const decoder = new TextDecoder();
    return { code, text: decoder.decode(stdout) + decoder.decode(stderr) };
  }
  [Symbol.dispose]() {
    Deno.removeSync(this.path, { recursive: true });
  }
}

const EVENTS = ["repaired", "blocked", "braked", "started", "running", "stopped", "killed", "cut off", "ended"];
const eventEnv = (event: string) => ({
  LIMA_GUARD_EVENT: event,
  LIMA_GUARD_INSTANCE: "k3s",
  LIMA_GUARD_HOME: "/Users/zoe/.lima",
  LIMA_GUARD_BECAUSE: `it's "so"; $(touch /tmp/never)`,
  LIMA_GUARD_STATUS: "1",
});

Deno.test("events: every event reaches the log as arguments of logger", () => {
  for (const event of EVENTS) {
    using folder = new Folder();
    folder.program("logger");
    assert.equal(folder.sh(read("events/unified-log.sh"), [], eventEnv(event)).code, 0);
    assert.deepEqual(folder.called("logger")?.slice(0, 6), [
      "-t",
      "lima-guard",
      "-p",
      "user.notice",
      "--",
      `lima-guard: k3s: ${event}`,
    ]);
    assert.ok(folder.called("logger")?.at(-1)?.endsWith(eventEnv(event).LIMA_GUARD_BECAUSE));
  }
});

const PINGS: Record<string, string> = {
  repaired: "/log",
  blocked: "/fail",
  braked: "/fail",
  started: "/start",
  running: "",
  stopped: "/log",
  killed: "/fail",
  "cut off": "/fail",
  ended: "/1",
};

Deno.test("events: a health check gets the right ping, within the 30 s of an event", () => {
  for (const event of EVENTS) {
    using folder = new Folder();
    folder.program("curl");
    folder.sh(read("events/healthchecks.sh"), [], eventEnv(event));
    const args = folder.called("curl") ?? [];
    assert.equal(args.at(-1), `https://hc-ping.com/UUID${PINGS[event]}`);
    const limit = (option: string) => Number(args[args.indexOf(option) + 1]);
    assert.ok(limit("-m") * (limit("--retry") + 1) < 30 && limit("--retry-max-time") < 30);
  }
});

Deno.test("events: a notification only for what needs a person, and no text is run as AppleScript", () => {
  for (const event of EVENTS) {
    using folder = new Folder();
    folder.program("osascript");
    folder.sh(read("events/notification.sh"), [], eventEnv(event));
    const args = folder.called("osascript");
    if (!["blocked", "braked", "killed", "cut off"].includes(event)) assert.equal(args, undefined);
    else assert.deepEqual(args?.slice(-2), [`k3s: ${event}`, eventEnv(event).LIMA_GUARD_BECAUSE]);
  }
});

/** The script with its programs replaced, and with 2 s instead of 75. */
function upsScript(folder: Folder): string {
  const text = read("ups/lima-guard-shutdown.sh");
  assert.match(text, /^wait_s=75$/m);
  return text.replaceAll("/usr/local/libexec/lima-guard", `${folder.path}/lima-guard`)
    .replaceAll("/sbin/shutdown", `${folder.path}/shutdown`).replace("wait_s=75", "wait_s=2");
}

const STOPS: Record<string, string | undefined> = {
  "succeeds": "exit 0",
  "fails": "exit 75",
  "is killed": "kill -9 $$",
  "hangs": 'echo $$ >"$0.pid"; exec sleep 60 >/dev/null 2>&1',
  "is not installed": undefined,
};

for (const [what, body] of Object.entries(STOPS)) {
  Deno.test(`ups: the Mac is shut down after a stop that ${what}`, () => {
    using folder = new Folder();
    if (body !== undefined) folder.program("lima-guard", body);
    folder.program("shutdown");
    const started = performance.now();
    folder.sh(upsScript(folder));
    assert.deepEqual(folder.called("shutdown"), ["-h", "now"]);
    if (body !== undefined) assert.deepEqual(folder.called("lima-guard"), ["--stop", "--all", "--timeout", "60"]);
    assert.ok(performance.now() - started < 30_000, "the shutdown waited for a stop that hangs");
    if (what === "hangs") Deno.kill(Number(Deno.readTextFileSync(`${folder.path}/lima-guard.pid`)), "SIGKILL");
  });
}

Deno.test("ups: no document joins a stop and a shutdown with &&", () => {
  const walk = (folder: string): string[] =>
    [...Deno.readDirSync(folder)].flatMap(({ name, isDirectory }) =>
      isDirectory ? walk(`${folder}/${name}`) : [`${folder}/${name}`]
    );
  for (const file of [`${project}/README.md`, ...walk(`${project}/docs`), ...walk(`${project}/examples`)]) {
    assert.doesNotMatch(Deno.readTextFileSync(file), /--stop --all[^\n]*&&[^\n]*shutdown/, file);
  }
});

const samples = (lines: readonly string[]) => lines.filter((line) => !line.startsWith("#"));

/** Lines that break the rules of the exposition format: HELP, TYPE, then all lines of this metric, and only once. */
function misplaced(lines: readonly string[]): string[] {
  let name = "";
  const seen = new Set<string>();
  return lines.filter((line) => {
    const [, mark = "", metric = ""] = /^(?:# (HELP|TYPE) )?([a-z_]+)/.exec(line) ?? [];
    if (mark === "HELP") name = metric;
    const isRight = {
      HELP: /^# HELP [a-z_]+ .+\.$/.test(line) && !seen.has(metric),
      TYPE: line === `# TYPE ${name} gauge`,
      "": /^[a-z_]+(\{[a-z_]+="[^"\\]*"(,[a-z_]+="[^"\\]*")*\})? \d+(\.\d+)?$/.test(line) && metric === name,
    }[mark];
    seen.add(metric);
    return !isRight;
  });
}

Deno.test("monitoring: the metrics of each instance, and a file in any case", () => {
  using folder = new Folder();
  Deno.writeTextFileSync(`${folder.path}/status.json`, read("ansible/status.json"));
  folder.program("lima-guard", `cat '${folder.path}/status.json'; exit 1`);
  const run = () => folder.sh(read("monitoring/lima-guard.prom.sh"), [folder.path]);
  const metrics = () => Deno.readTextFileSync(`${folder.path}/lima-guard.prom`).trimEnd().split("\n");
  assert.equal(run().code, 0);
  assert.deepEqual(folder.called("lima-guard"), ["--status", "--json"]);
  const labels = 'lima_instance="default",home="/Users/vms/.lima"';
  assert.ok(metrics().includes(`lima_guard_status{${labels}} 1`));
  assert.ok(metrics().includes(`lima_guard_state{${labels},state="stale"} 1`));
  assert.ok(metrics().includes(`lima_guard_last_stop{${labels},kind="none"} 1`));
  assert.ok(metrics().includes("lima_guard_instances 1"));
  assert.deepEqual(misplaced(metrics()), []);
  // An instance about which little could be found out must not cost the others their lines.
  const [known] = JSON.parse(read("ansible/status.json")).instances;
  const { jobs: _, ...little } = { ...known, name: "b", brakeSeconds: null };
  Deno.writeTextFileSync(`${folder.path}/status.json`, JSON.stringify({ instances: [known, little] }));
  assert.equal(run().code, 0);
  assert.deepEqual(misplaced(metrics()), []);
  const backOffs = samples(metrics()).filter((line) => line.startsWith("lima_guard_restart"));
  assert.deepEqual(backOffs, [`lima_guard_restart_backoff_seconds{${labels}} 0`]);
  assert.ok(metrics().includes(`lima_guard_jobs_guarded{${labels.replace("default", "b")}} 0`));
  for (const output of ["", "no JSON", "{}", '{"instances": [{}'].map((text) => `printf '%s' '${text}'; exit 75`)) {
    folder.program("lima-guard", output);
    assert.equal(run().code, 0);
    assert.deepEqual(samples(metrics()), ["lima_guard_answered 0"], output);
    assert.deepEqual(misplaced(metrics()), []);
  }
  assert.deepEqual([...Deno.readDirSync(folder.path)].filter(({ name }) => name.startsWith(".lima-guard")), []);
});

Deno.test("monitoring: instances of one name in two homes are two series, never one that is there twice", async () => {
  await using home = await tempLimaHome({ name: "home/.lima" });
  const { dir } = home.instance("default");
  const other = `${home.user}/.colima/_lima/default`;
  Deno.mkdirSync(other, { recursive: true });
  Deno.copyFileSync(`${dir}/lima.yaml`, `${other}/lima.yaml`);
  using folder = new Folder();
  const { stdout } = await runGuard(home, ["--status", "--json"], { env: { LIMA_HOME: "" } });
  Deno.writeTextFileSync(`${folder.path}/status.json`, stdout);
  folder.program("lima-guard", `cat '${folder.path}/status.json'`);
  assert.equal(folder.sh(read("monitoring/lima-guard.prom.sh"), [folder.path]).code, 0);
  const lines = Deno.readTextFileSync(`${folder.path}/lima-guard.prom`).trimEnd().split("\n");
  assert.deepEqual(misplaced(lines), []);
  const series = samples(lines).map((line) => line.replace(/ \S+$/, ""));
  assert.equal(series.filter((one) => one.startsWith("lima_guard_status{")).length, 2, stdout);
  assert.deepEqual(series.filter((one, i) => series.indexOf(one) !== i), []);
});

Deno.test("monitoring: a job is asked for where an app starts the VM itself: never", () => {
  const [, apps = ""] = /lima_guard_jobs_guarded\{lima_instance!~"(.+?)"\} == 0/.exec(
    read("monitoring/lima-guard.rules.yml"),
  ) ?? [];
  const page = Deno.readTextFileSync(`${project}/docs/apps.md`);
  const named = [...page.matchAll(/^lima-guard --lima-home .* --pre (\S+) +#/gm)].map(([, name]) => name);
  assert.deepEqual(apps.split("|"), named);
});

Deno.test("monitoring: the check of Nagios is OK only if an instance is there and all is well", () => {
  const script = read("monitoring/check_lima_guard");
  const check = (body: string) => {
    using folder = new Folder();
    folder.program("lima-guard", body);
    const result = folder.sh(script.replace("/usr/local/bin/lima-guard", `${folder.path}/lima-guard`));
    assert.deepEqual(folder.called("lima-guard"), ["--status"]);
    return result;
  };
  for (const [status, wanted] of [[0, 0], [1, 2], [64, 3], [66, 2], [75, 3], [77, 3]]) {
    const { code, text } = check(`echo 'k3s: it | is so'; echo why >&2; exit ${status}`);
    assert.equal(code, wanted, `${status}`);
    assert.equal(text, `lima-guard: status ${status}\nk3s: it / is so\nwhy\n`);
  }
  assert.equal(check("echo 'no instance'").code, 2);
  using empty = new Folder();
  // Not installed: the shell's own 127.
  assert.equal(empty.sh(script.replace("/usr/local/bin", empty.path)).code, 3);
});

const monitoring = Deno.readTextFileSync(`${project}/docs/monitoring.md`);
/** The kinds of last stop that docs/monitoring.md marks for an alarm. */
const ALARMS = [...monitoring.matchAll(/^\| `(.+?)` +\| .+ \| yes +\|$/gm)].map(([, kind = ""]) => kind).sort();

Deno.test("monitoring: every alarm rings for just the kinds of last stop that are marked for it", () => {
  const [, play = ""] = /lastStopKind not in \[(.+)\]/.exec(read("ansible/status.yml")) ?? [];
  assert.deepEqual([...play.matchAll(/'(.+?)'/g)].map(([, kind]) => kind).sort(), ALARMS);
  const [, rule = ""] = /lima_guard_last_stop\{kind=~"(.+?)"\}/.exec(read("monitoring/lima-guard.rules.yml")) ?? [];
  assert.deepEqual(rule.split("|").sort(), ALARMS);
  assert.deepEqual(ALARMS.filter((kind) => !LAST_STOP_KINDS.includes(kind)), []);
  // A guest that has lost its power is what the tool is for.
  for (const kind of ["cut by agent", "cut off", "killed"]) assert.ok(ALARMS.includes(kind), kind);
});

Deno.test("monitoring: the line to type names an instance for just these kinds", () => {
  const [line = ""] = /^lima-guard --status --json \| jq .+$/m.exec(monitoring) ?? [];
  const named = LAST_STOP_KINDS.filter((kind) => {
    using folder = new Folder();
    folder.program("lima-guard", `echo '{"instances": [{"name": "k3s", "status": 0, "lastStopKind": "${kind}"}]}'`);
    return folder.sh(line).text === "k3s\n";
  });
  assert.deepEqual(named.sort(), ALARMS);
  // A report without these fields, and a document without an instance.
  const said = (document: unknown) => {
    using folder = new Folder();
    folder.program("lima-guard", `echo '${JSON.stringify(document)}'`);
    return folder.sh(line);
  };
  assert.deepEqual(said({ instances: [{ name: "k3s", status: 66 }, { name: "b", status: 0 }] }), {
    code: 0,
    text: "k3s\n",
  });
  assert.equal(said({ instances: [] }).text, "no instance: \n");
  assert.equal(said({ error: { what: "no such directory" }, instances: [] }).text, "no instance: no such directory\n");
  using folder = new Folder();
  folder.program("lima-guard");
  assert.notEqual(folder.sh(line).code, 0, "no answer at all is a failure");
});

Deno.test("monitoring: the line that looks at the jobs is silent at 0 only", () => {
  const [line = ""] = /^lima-guard --check --all .+$/m.exec(monitoring) ?? [];
  for (const status of [0, 1, 64, 66, 75, 77]) {
    using folder = new Folder();
    folder.program("lima-guard", `echo '{}'; exit ${status}`);
    assert.equal(folder.sh(line).text, status === 0 ? "" : `lima-guard --check --all: status ${status}\n`);
  }
});

Deno.test("monitoring: every alarm is about a metric that the script writes, or node_exporter itself", () => {
  const written = new Set(read("monitoring/lima-guard.prom.sh").match(/lima_guard_\w+/g));
  const alarms = [
    ...read("monitoring/lima-guard.rules.yml").matchAll(/^ +expr: .*?((?:lima_guard|node_textfile)_\w+)/gm),
  ];
  assert.equal(alarms.length, read("monitoring/lima-guard.rules.yml").match(/- alert: /g)?.length);
  const own = alarms.map(([, metric = ""]) => metric).filter((metric) => metric !== "node_textfile_mtime_seconds");
  assert.deepEqual(own.filter((metric) => !written.has(metric)), []);
  // Those without an alarm only tell what there is.
  const silent = [...written].filter((metric) => !own.includes(metric));
  assert.deepEqual(silent.sort(), ["lima_guard_jobs", "lima_guard_state"]);
});

Deno.test("monitoring: a guest that was cut off rings after the reboot, until a later stop went well", async () => {
  await using home = await tempLimaHome();
  const k3s = home.instance("k3s");
  using folder = new Folder();
  const event = `${home.root}/healthchecks.sh`;
  Deno.copyFileSync(`${project}/examples/events/healthchecks.sh`, event);
  Deno.chmodSync(event, 0o755);
  // The whole address is the last argument.
  const pings = `${home.root}/pings`;
  Deno.writeTextFileSync(`${home.bin}/curl`, `#!/bin/sh\nfor word; do :; done\necho "$word" >>'${pings}'\n`, {
    mode: 0o755,
  });
  const start = [home.limactl, "start", "k3s", "--foreground"];
  const run = () => spawnGuard(home, ["--run", "k3s", "--on-event", event, "--", ...start]);
  /** What --status says, and whether Prometheus and Ansible ring for the last stop. */
  const rings = async () => {
    const { stdout, status } = await runGuard(home, ["--status", "--json"]);
    Deno.writeTextFileSync(`${folder.path}/status.json`, stdout);
    folder.program("lima-guard", `cat '${folder.path}/status.json'; exit ${status}`);
    assert.equal(folder.sh(read("monitoring/lima-guard.prom.sh"), [folder.path]).code, 0);
    const metrics = Deno.readTextFileSync(`${folder.path}/lima-guard.prom`).trimEnd().split("\n");
    assert.deepEqual(misplaced(metrics), []);
    const kind = metrics.map((line) => /^lima_guard_last_stop\{.*kind="(.+)"\} 1$/.exec(line)?.[1]).find(Boolean) ?? "";
    assert.equal(JSON.parse(stdout).instances[0].lastStopKind, kind);
    return { kind, rings: ALARMS.includes(kind) };
  };
  assert.deepEqual(await rings(), { kind: "none", rings: false });
  {
    await using guard = run();
    await guard.waitForLine(/Running after/);
    const agent = k3s.pid("ha.pid")!;
    // The power goes: no process is left to write anything, and the next boot is another one.
    for (const pid of [guard.pid, agent]) Deno.kill(pid, "SIGKILL");
    await guard.status;
    await eventually(() => assert.ok(!isAlive(agent)));
  }
  const journal = `${k3s.dir}/lima-guard.jsonl`;
  const lines = Deno.readTextFileSync(journal).replaceAll(/"boot":"[^"]+"/g, '"boot":"the one before"');
  Deno.writeTextFileSync(journal, lines);
  assert.deepEqual(await rings(), { kind: "cut off", rings: true });
  await using guard = run();
  await guard.waitForLine(/Running after/);
  // Starting and running are no failure: this one is for the guest that was cut off.
  await eventually(() => assert.match(Deno.readTextFileSync(pings), /UUID\/fail$/m));
  assert.deepEqual(await rings(), { kind: "cut off", rings: true });
  guard.signal("SIGTERM");
  await guard.result();
  const after = await rings();
  assert.ok(!after.rings, after.kind);
});

/** The commands of a play, without the program. */
const commandsOf = (play: string) =>
  [...play.matchAll(/argv: \[(.+)\]/g)].map(([, words = ""]) => words.split(", ").slice(1));

Deno.test("ansible: the plays call lima-guard as it understands, and fail where nothing is protected", () => {
  const [install, status] = [read("ansible/playbook.yml"), read("ansible/status.yml")];
  for (const args of commandsOf(install + status)) {
    const isInstall = args.some((word) => /^--(install|check)$/.test(word));
    assert.ok(!("usage" in (isInstall ? parseInstallArgs(args) : parseCommandLine(args))), args.join(" "));
  }
  const checks = (play: string) => commandsOf(play).filter((args) => args.join(" ") === "--check --all --json").length;
  // 66 of the command fails the task, unless the task says otherwise.
  assert.deepEqual([checks(install), checks(status)], [1, 1]);
  assert.doesNotMatch(install, /failed_when|ignore_errors/);
  assert.deepEqual(status.match(/failed_when: .+/g), [
    "failed_when: status.rc not in [0, 1]",
    "failed_when: check.rc != 0",
  ]);
  for (const rule of [/instances \| length > 0/, /item\.jobs \| length > 0/]) assert.match(status, rule);
});

Deno.test("ansible: a binary is fetched with the sum that the same release names for it", () => {
  const [, url, sum] = /get_url:\n +url: "(.+)"\n +checksum: "(.+)"/.exec(read("ansible/playbook.yml")) ?? [];
  assert.equal(url, "{{ lima_guard_release }}/{{ binary }}");
  assert.equal(sum, "sha256:{{ lima_guard_release }}/SHA256SUMS");
  assert.match(
    read("ansible/inventory.yml"),
    /lima_guard_release: https:\/\/github\.com\/OWNER\/lima-guard\/releases\//,
  );
});

Deno.test("mdm: the profile names the launchd labels of Lima and of Homebrew's Colima", () => {
  const profile = plist.parse(read("mdm/lima-guard.mobileconfig")) as Record<string, unknown>;
  const [payload] = profile.PayloadContent as Record<string, unknown>[];
  assert.equal(payload?.PayloadType, "com.apple.servicemanagement");
  const rules = (payload?.Rules as Record<string, unknown>[]).map(({ RuleType, RuleValue }) => [RuleType, RuleValue]);
  assert.deepEqual(rules, [["LabelPrefix", "io.lima-vm."], ["Label", "homebrew.mxcl.colima"]]);
});

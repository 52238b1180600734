/** install.ts on a pretended Mac, with real users: what it does, in which order, what it leaves, what it says. */

import assert from "node:assert/strict";
import { BACKUP_SUFFIX, LOG_NAME } from "../install.ts";
import { VERSION } from "../lima_guard.ts";
import {
  ADA,
  AGENT,
  BESIDE,
  DAEMON,
  EVE,
  FakeMac,
  fixture,
  guarded,
  limactl,
  listed,
  macTest,
  macWith,
  type Person,
  ROOT,
  ZOE,
} from "./install_mac.ts";

/** For what neither the tools' processes nor root's own decide. */

for (const kind of ["daemon", "agent"] as const) {
  macTest(`${kind}: install lets launchd run lima-guard, and uninstall gives the very bytes back`, async () => {
    const { mac, file, text, as, guard, job } = macWith(kind);
    await using _ = mac;
    const before = job()!;
    const installed = await mac.run(["--yes", "--json", "default"], { as });
    assert.equal(installed.status, 0, installed.stderr + installed.stdout);
    const report = installed.json();
    assert.deepEqual([report.state, report.changed], ["guarded", true]);
    assert.deepEqual(report.guard, { path: guard, version: VERSION, previous: null, running: null });
    assert.deepEqual(job()!.args, guarded(mac, guard));
    assert.equal(job()!.timeout, 60);
    assert.ok(job()!.pid !== undefined && job()!.pid !== before.pid);
    assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), text);
    const look = Deno.lstatSync(guard);
    assert.deepEqual([look.uid, look.mode! & 0o777], [as.uid, 0o755]);
    assert.equal(Deno.lstatSync(file).uid, as.uid);
    assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
    assert.equal((await mac.run(["--check", "default"], { as })).status, 0);

    const again = await mac.run(["--json", "default"], { as });
    assert.deepEqual([again.status, JSON.parse(again.stdout).changed], [0, false], again.stdout);

    const gone = await mac.run(["--uninstall", "--yes", "--json", "default"], { as });
    assert.deepEqual([gone.status, gone.json().state], [0, "not guarded"], gone.stderr + gone.stdout);
    assert.equal(Deno.readTextFileSync(file), text);
    assert.deepEqual(job()!.args, limactl(mac));
    assert.ok(job()!.pid !== undefined, "it runs again");
    assert.deepEqual(listed(file.replace(/\/[^/]*$/, "")), [file.replace(/.*\//, "")]);
    assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
  });
}

macTest(
  "nothing is stopped before the file and the guard are in place, and the guest is stopped before bootout",
  async () => {
    const { mac } = macWith("daemon");
    await using _ = mac;
    await mac.run(["--yes", "default"]);
    const log = mac.log().map((line) => line.replaceAll(mac.root, ""));
    const at = (pattern: RegExp) => {
      const found = log.findIndex((line) => pattern.test(line));
      assert.ok(found >= 0, `${pattern} is not in\n${log.join("\n")}`);
      return found;
    };
    const order = [
      /^0: id -P zoe/,
      /^0: launchctl print system/,
      /^0: codesign --verify .*libexec/,
      /^501: lima-guard --version/,
      /^0: plutil -lint/,
      /^501: lima-guard --stop --json/,
      /^0: launchctl bootout/,
      /^0: launchctl bootstrap/,
    ].map(at);
    assert.deepEqual(order, order.toSorted((a, b) => a - b), log.join("\n"));
    assert.ok(
      !log.some((line) => /enable|disable /.test(line.replace("print-disabled", ""))),
      "enabled is not touched",
    );
    assert.deepEqual(mac.guardUids(), [501], "only the job's user runs it");
  },
);

macTest("the dry run says the very words that the run then prints, and writes nothing", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, as } = macWith(kind);
    await using _ = mac;
    const before = mac.tree();
    const dry = await mac.run(["--dry-run", "default"], { as });
    assert.equal(dry.status, 0, dry.stdout);
    assert.deepEqual(mac.tree(), before);
    assert.ok(dry.stdout.includes("\n+\t<key>ExitTimeOut</key>\n+\t<integer>60</integer>\n"), dry.stdout);
    const would = [...dry.stdout.matchAll(/^ {2}would (.*?) {2}\(/gm)].map((m) => m[1]);
    const real = await mac.run(["--yes", "default"], { as });
    const did = [...real.stderr.matchAll(/^(?:\$ (.*)|lima-guard: (.*?) {2}\()/gm)].map((m) => m[1] ?? m[2]);
    assert.ok(would.length > 8);
    assert.deepEqual(did, would);
  }
});

macTest("the diff is one that patch takes; --print prints the finished plist", async () => {
  const { mac, file, text, as } = macWith("agent");
  await using _ = mac;
  const dry = await mac.run(["--dry-run", "default"], { as });
  const hunks = /^--- [^]*?(?=^ {2}would)/m.exec(dry.stdout)![0];
  const dir = `${mac.root}/patched`;
  mac.folder(dir);
  mac.write(`${dir}/old`, text);
  mac.write(`${dir}/diff`, hunks);
  const patch = new Deno.Command("patch", { args: ["-p0", `${dir}/old`, `${dir}/diff`] }).outputSync();
  assert.ok(patch.success, new TextDecoder().decode(patch.stdout));
  const printed = await mac.run(["--print", "default"], { as });
  assert.equal(printed.status, 0, printed.stderr);
  assert.equal(printed.stdout, Deno.readTextFileSync(`${dir}/old`));
  assert.equal(Deno.readTextFileSync(file), text);
  assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
  assert.equal(Deno.readTextFileSync(file), printed.stdout);
});

macTest(
  "a newer lima-guard is put in place and said; the job runs it after --restart; an older one needs --downgrade",
  async () => {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    await mac.run(["--yes", "default"]);
    const [pid, old] = [job()!.pid, Deno.readTextFileSync(mac.guard)];
    mac.putGuard(mac.source, "\n# newer\n");
    mac.forget();
    const upgrade = await mac.run(["--yes", "--json", "default"]);
    assert.deepEqual(upgrade.json().guard, {
      path: mac.guard,
      version: VERSION,
      previous: VERSION,
      running: null,
    });
    assert.equal(upgrade.json().changed, true);
    assert.ok(Deno.readTextFileSync(mac.guard).endsWith("# newer\n"));
    assert.equal(Deno.readTextFileSync(`${mac.guard}.previous`), old);
    assert.equal(job()!.pid, pid, "the VM was not restarted");
    const restart = await mac.run(["--yes", "--restart", "default"]);
    assert.equal(restart.status, 0, restart.stdout);
    assert.notEqual(job()!.pid, pid);
    assert.ok(!mac.exists(`${mac.state}/cut_off`));

    mac.putGuard(mac.guard, "\n# version 9.9.9\n");
    const refused = await mac.run(["--yes", "--json", "default"]);
    assert.deepEqual([refused.status, refused.json().state], [1, "refused"], refused.stdout);
    assert.match(refused.json().blockers[0].because, /version 9\.9\.9/);
    assert.equal(refused.json().blockers[0].hint, "--downgrade");
    const down = await mac.run(["--yes", "--json", "--downgrade", "default"]);
    assert.equal(down.status, 0, down.stdout);
    assert.equal(down.json().guard.previous, "9.9.9");
  },
);

macTest(
  "Lima writes its plist again: --check says so, and install wraps it with the options it had before",
  async () => {
    const rows: [words: string[], kept: (args: string[]) => boolean][] = [
      [["--exit-timeout", "45"], (args) => args.includes("45")],
      [["--on-event", "/bin/sh"], (args) => args.includes("/bin/sh")],
      [["--guard-dir", "GUARDS"], (args) => args[0]!.includes("/other/")],
      [["--keep-alive"], () => true],
    ];
    for (const [words, kept] of rows) {
      const { mac, file, text, as, domain, label } = macWith("agent");
      await using _ = mac;
      const options = words.map((w) => w.replace("GUARDS", `${mac.home}/other`));
      const first = await mac.run(["--yes", ...options, "default"], { as });
      assert.equal(first.status, 0, first.stdout);
      const wrapped = Deno.readTextFileSync(file);
      const newer = text.replace("Background", "Standard");
      mac.agent("default", newer);
      const checked = await mac.run(["--check", "default"], { as });
      assert.equal(checked.status, 1);
      assert.match(checked.stdout, /the plist does not run lima-guard/);
      const again = await mac.run(["--yes", "default"], { as });
      assert.equal(again.status, 0, again.stdout);
      assert.equal(Deno.readTextFileSync(file), wrapped.replace("Background", "Standard"), options.join(" "));
      assert.equal(Deno.readTextFileSync(file + BACKUP_SUFFIX), newer);
      assert.ok(kept(mac.job(domain, label)!.args));
      const pid = mac.job(domain, label)!.pid;
      const third = await mac.run(["--yes", "--json", "default"], { as });
      assert.deepEqual([third.status, third.json().changed], [0, false], third.stdout);
      assert.equal(mac.job(domain, label)!.pid, pid);
      assert.equal((await mac.run(["--check", "default"], { as })).status, 0, "and --check agrees");
      await mac.run(["--uninstall", "--yes", "default"], { as });
      assert.equal(Deno.readTextFileSync(file), newer);
    }
  },
);

macTest("--guard is used in its place, and stays the guard of a plain install", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  const own = mac.putGuard(`${mac.system}/opt/lima-guard`, "\n# another build\n");
  const first = await mac.run(["--yes", "--guard", own, "default"]);
  assert.equal(first.status, 0, first.stdout);
  const pid = job()!.pid;
  const again = await mac.run(["--yes", "default"]);
  assert.equal(again.status, 0, again.stdout);
  assert.deepEqual([job()!.args[0], job()!.pid], [own, pid]);
  assert.ok(Deno.readTextFileSync(own).endsWith("# another build\n"));
  assert.ok(!mac.exists(mac.guard));
});

macTest("an agent takes the guard of this version that root has put there already", async () => {
  const { mac, as, job } = macWith("agent");
  await using _ = mac;
  mac.putGuard(mac.guard);
  const run = await mac.run(["--yes", "default"], { as });
  assert.equal(run.status, 0, run.stdout);
  assert.deepEqual(job()!.args[0], mac.guard);
  assert.ok(!mac.exists(`${mac.home}/.local`));
});

// ── launchd's moods ──

macTest("a job whose process is no host agent yet is booted out, and installed", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  mac.conf("agent=0");
  const run = await mac.run(["--yes", "--json", "default"]);
  assert.deepEqual([run.status, run.json().state], [0, "guarded"], run.stdout);
  assert.deepEqual(job()!.args, guarded(mac));
});

macTest("a job that takes long to end is waited for; a second bootout has its own codes", async () => {
  for (const conf of ["dying=25", "again=36", "again=5"]) {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    mac.conf(conf);
    assert.equal((await mac.run(["--yes", "default"])).status, 0, conf);
    assert.deepEqual(job()!.args, guarded(mac));
  }
});

// What bootstrap says, and what an install makes of it.
const CODES: [code: number, times: number, status: number][] = [
  [5, 4, 0],
  [36, 2, 0],
  [37, 2, 0],
  ...[109, 111, 119, 122, 124, 125, 134, 139, 150, 155, 161].map((code): [number, number, number] => [code, 1, 1]),
];
for (const [code, times, status] of CODES) {
  macTest(
    `bootstrap says ${code}: ${status === 0 ? "it is tried again" : "the old job is put back, with the words"}`,
    async () => {
      const { mac, job, file, text } = macWith("daemon");
      await using _ = mac;
      mac.fault(...Array.from({ length: times }, (_, i) => `bootstrap:${i + 1} ${code}`));
      const run = await mac.run(["--yes", "--json", "default"]);
      assert.equal(run.status, status, run.stdout);
      assert.deepEqual(job()!.args, status === 0 ? guarded(mac) : limactl(mac));
      if (status === 0) return;
      assert.equal(run.json().state, "rolled back");
      assert.match(run.json().blockers[0].because, new RegExp(`status ${code}: [a-z]`));
      assert.equal(Deno.readTextFileSync(file), text);
    },
  );
}

for (const [code, times, status] of CODES.filter(([code]) => [5, 36, 37, 125, 161].includes(code))) {
  const heals = status === 0;
  macTest(
    `bootstrap says ${code} in a rollback: ${heals ? "it is tried again" : "broken, with the words"}`,
    async () => {
      const { mac, job, file, text } = macWith("daemon");
      await using _ = mac;
      mac.fault("bootstrap:1 122", ...Array.from({ length: times }, (_, i) => `bootstrap:${i + 2} ${code}`));
      const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { runningMs: 100 } } });
      assert.deepEqual([run.status, run.json().state], [1, heals ? "rolled back" : "broken"], run.stdout);
      assert.match(run.json().blockers[0].because, /status 122: the plist has a bad owner or mode/);
      assert.equal(Deno.readTextFileSync(file), text);
      assert.deepEqual(job()?.args, heals ? limactl(mac) : undefined);
      if (heals) return;
      assert.match(run.stderr, new RegExp(`the rollback has failed: .*bootstrap .*: status ${code}: [a-z]`));
      assert.ok(run.json().blockers[0].hint.endsWith(`launchctl bootstrap system ${file}`), run.stdout);
    },
  );
}

macTest("bootstrap says 0 and keeps no job: said, and put back", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  mac.conf("kept=0");
  const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { bootstrapMs: 300 } } });
  assert.equal(run.status, 1);
  assert.match(run.json().blockers[0].because, /accepted the job and has not kept it.*Login Items/);
  assert.equal(Deno.readTextFileSync(file), text);
});

macTest(
  "KeepAlive {SuccessfulExit: true} is turned round: a stop stays down, a crash comes up; and it comes back",
  async () => {
    const mac = FakeMac.make();
    await using _ = mac;
    mac.instance("colima", `${mac.home}/.colima/_lima`);
    mac.folder(`${mac.home}/.colima`, ZOE);
    const text = fixture(mac, "homebrew-colima").replace("opt/colima/bin/", "bin/");
    const file = mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, text, ZOE);
    mac.load("gui/501", file);
    const label = "homebrew.mxcl.colima";
    const run = await mac.run(["--yes", "--json", "colima"], { as: ZOE });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.deepEqual(run.json().changes.find((c: { key: string }) => c.key === "KeepAlive"), {
      key: "KeepAlive",
      before: { SuccessfulExit: true },
      after: { SuccessfulExit: false },
    });
    const end = (status: number) => {
      const { pid } = mac.job("gui/501", label)!;
      mac.write(`${mac.state}/exit/${pid}`, String(status));
      Deno.removeSync(`${mac.state}/alive/${pid}`);
      mac.launchctl(["print", `gui/501/${label}`]);
      return mac.job("gui/501", label)!.pid;
    };
    assert.notEqual(end(137), undefined, "it comes up after a crash");
    assert.equal(end(0), undefined, "it stays down after a stop");
    const checked = await mac.run(["--check", "colima"], { as: ZOE });
    assert.equal(checked.status, 0, checked.stdout);
    assert.equal((await mac.run(["--uninstall", "--yes", "colima"], { as: ZOE })).status, 0);
    assert.equal(Deno.readTextFileSync(file), text);
  },
);

macTest("a job that ran and does not start by itself is kicked, and it is said that nothing starts it", async () => {
  const mac = FakeMac.make();
  await using _ = mac;
  mac.load("system", mac.daemon("default", fixture(mac, "lima-2.2-daemon").replace("<true/>", "<false/>")));
  mac.launchctl(["kickstart", `system/${DAEMON}`]);
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /nothing starts it at boot or login/);
  assert.ok(mac.job("system", DAEMON)!.pid !== undefined);
  assert.match((await mac.run(["--check", "default"])).stdout, /nothing starts it at boot or login/);
});

macTest("an ExitTimeOut that launchd clamps is a note with the number", async () => {
  const { mac, as } = macWith("agent");
  await using _ = mac;
  const run = await mac.run(["--yes", "--exit-timeout", "120", "default"], { as });
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /exit timeout of 60 s in force, the plist says 120 s/);
  const again = await mac.run(["--yes", "--json", "--exit-timeout", "120", "default"], { as });
  assert.equal(again.json().changed, false);
});

macTest(
  "--exit-timeout that is small is taken, remembered, and a note for --check; a --timeout of its own is a trouble",
  async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "--exit-timeout", "45", "default"])).status, 0);
    const checked = await mac.run(["--check", "default"]);
    assert.equal(checked.status, 0, checked.stdout);
    assert.match(checked.stdout, /a stop has 45 s, as asked for/);
    mac.write(file, Deno.readTextFileSync(file).replace("<integer>45<", "<integer>60<"));
    assert.match((await mac.run(["--check", "default"])).stdout, /--timeout 45 in the plist leaves a stop 45 s/);
    assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
    assert.equal(Deno.readTextFileSync(file), text);
  },
);

macTest("an instance that cannot be stopped gracefully stays as it is, under its old job", async () => {
  const { mac, job } = macWith("daemon");
  await using _ = mac;
  const [before, pid] = [mac.tree(), job()!.pid];
  mac.conf("stop=75");
  const run = await mac.run(["--yes", "--json", "default"]);
  assert.equal(run.status, 1);
  assert.match(run.json().blockers[0].because, /the guard cannot tell/);
  assert.deepEqual([mac.tree(), job()!.pid], [before, pid]);
  assert.ok(!mac.log().some((line) => line.includes("bootout")), "not booted out: that would cut the guest off");
});

macTest("without a login session the file is changed, and it is said when it counts", async () => {
  for (const code of [112, 113, 125]) {
    const mac = FakeMac.make();
    await using _ = mac;
    mac.conf(`session=${code}`);
    Deno.removeSync(`${mac.state}/sessions/501`);
    const file = mac.agent("default", fixture(mac, "lima-2.2-agent"));
    const run = await mac.run(["--yes", "default"], { as: ZOE });
    assert.equal(run.status, 0, run.stdout);
    assert.match(run.stdout, /no user is logged in at the screen: it takes effect at the next login/);
    assert.ok(Deno.readTextFileSync(file).includes("--run"));
    assert.ok(!mac.log().some((line) => /bootstrap|bootout/.test(line)));
    assert.equal((await mac.run(["--check", "default"], { as: ZOE })).status, 0);
  }
});

macTest("a launchctl that does not answer is no answer: nothing is touched", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  const before = mac.tree();
  for (const fault of ["print:1 hang", "print:1 1", "print:1 killed", "print-disabled:1 5"]) {
    mac.forget();
    mac.fault(fault);
    const run = await mac.run(["--yes", "default"], { settings: { limits: { commandMs: 300 } } });
    assert.equal(run.status, 75, `${fault}: ${run.stdout}`);
    assert.deepEqual(mac.tree(), before);
  }
});

// ── off stays off ──

for (const kind of ["daemon", "agent"] as const) {
  for (const [isLoaded, isDisabled] of [[false, false], [false, true], [true, true]] as const) {
    const state = `${isLoaded ? "loaded" : "not loaded"}, ${isDisabled ? "disabled" : "enabled"}`;
    macTest(`${kind}, ${state}: the recipe --check || --install, twice, leaves launchd as it was`, async () => {
      const { mac, file, text, as, domain, label, job } = macWith(kind);
      await using _ = mac;
      if (!isLoaded) mac.lose(domain, label);
      if (isDisabled) mac.launchctl(["disable", `${domain}/${label}`], as);
      for (let n = 0; n < 2; n++) {
        await mac.run(["--check", "default"], { as });
        const run = await mac.run(["--yes", "--json", "default"], { as });
        assert.equal(run.status, 0, run.stdout);
        assert.equal(run.json().state, isLoaded && n === 0 ? "guarded" : "guarded, off", run.stdout);
        if (!isLoaded) assert.match(run.stdout, /--start/);
      }
      assert.deepEqual([job() !== undefined, mac.isDisabled(domain, label)], [isLoaded, isDisabled]);
      assert.ok(Deno.readTextFileSync(file).includes("--run"));
      const checked = await mac.run(["--check", "--json", "default"], { as });
      assert.deepEqual([checked.status, checked.json().state], [0, "guarded, off"], checked.stdout);
      const off = await mac.run(["--uninstall", "--yes", "default"], { as });
      assert.equal(off.status, 0, off.stdout);
      assert.equal(Deno.readTextFileSync(file), text);
      assert.deepEqual([job() !== undefined, mac.isDisabled(domain, label)], [isLoaded, isDisabled]);
      const started = await mac.run(["--yes", "--start", "default"], { as });
      assert.equal(started.status, 0, started.stdout);
      assert.ok(job()!.pid !== undefined && !mac.isDisabled(domain, label), "--start enables and loads");
    });
  }
}

macTest("--start of a guarded job that is disabled and runs: it is enabled, and runs on", async () => {
  const { mac, domain, label, job } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  mac.launchctl(["disable", `${domain}/${label}`]);
  const { pid } = job()!;
  assert.ok(pid !== undefined);
  mac.forget();
  for (const changed of [true, false]) {
    const run = await mac.run(["--yes", "--start", "--json", "default"]);
    assert.deepEqual([run.status, run.json().state], [0, "guarded"], run.stdout);
    assert.equal(JSON.parse(run.stdout).changed, changed);
    assert.deepEqual([job()!.pid, mac.isDisabled(domain, label)], [pid, false]);
  }
  assert.ok(!mac.log().some((line) => /bootout|--stop/.test(line)), mac.log().join("\n"));
});

for (const [isLoaded, isDisabled] of [[true, false], [true, true], [false, false], [false, true]] as const) {
  const state = `${isLoaded ? "loaded" : "not loaded"}, ${isDisabled ? "disabled" : "enabled"}`;
  macTest(`a bare plist beside an old backup, ${state}: --uninstall changes neither it nor launchd`, async () => {
    for (const [what, backup] of [["of this plist", ""], ["of an older one", "<!-- older -->\n"]] as const) {
      const { mac, file, text, domain, label, job } = macWith("daemon");
      await using _ = mac;
      mac.write(file + BACKUP_SUFFIX, text + backup);
      if (!isLoaded) mac.lose(domain, label);
      if (isDisabled) mac.launchctl(["disable", `${domain}/${label}`]);
      mac.forget();
      const pid = job()?.pid;
      const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
      assert.deepEqual([run.status, run.json().state], [0, "not guarded"], `${what}: ${run.stdout}`);
      const now = [job()?.pid, mac.isDisabled(domain, label), Deno.readTextFileSync(file)];
      assert.deepEqual(now, [pid, isDisabled, text], what);
      const changing = mac.log().filter((line) => /launchctl (?!print)/.test(line));
      assert.deepEqual(changing, [], what);
    }
  });
}

// ── rid of it ──

macTest(
  "the job of an instance that is gone is removed by --uninstall, with its backup; --purge takes the guard too",
  async () => {
    const { mac, file, job } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    const checked = await mac.run(["--check", "--json", "default"]);
    assert.equal(checked.status, 1);
    assert.match(checked.json().blockers[0].because, /the instance is gone/);
    assert.match(checked.json().blockers[0].hint, /--uninstall/);
    const again = await mac.run(["--yes", "default"]);
    assert.equal(again.status, 1, "install refuses what --check names");
    const run = await mac.run(["--uninstall", "--purge", "--yes", "--json", "default"]);
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.equal(job(), undefined);
    assert.deepEqual([mac.exists(file), listed(mac.daemons), mac.exists(mac.guard)], [false, [], false]);
  },
);

macTest("what was done is logged: who, what, with which versions; a log that cannot be written is a note", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, as, file, guard } = macWith(kind);
    await using _ = mac;
    const by = kind === "daemon" ? ADA : as;
    assert.equal((await mac.run(["--yes", "default"], { as: by })).status, 0);
    assert.equal((await mac.run(["--yes", "default"], { as: by })).status, 0, "nothing to do is no line");
    mac.putGuard(mac.source, "\n# newer\n");
    mac.fault("bootout:1 5", "plutil:2 1");
    const failed = await mac.run(["--yes", "--restart", "default"], { as: by });
    mac.forget();
    assert.equal((await mac.run(["--uninstall", "--yes", "default"], { as: by })).status, 0);
    const lines = mac.logged();
    assert.deepEqual(lines.map((l) => [l["role"], l["name"], l["uid"]]), [
      ["install", "default", as.uid],
      ["install", "default", as.uid],
      ["uninstall", "default", as.uid],
    ]);
    assert.deepEqual(lines.map((l) => l["state"]), [
      "guarded",
      failed.status === 0 ? "guarded" : "rolled back",
      "not guarded",
    ]);
    assert.deepEqual([lines[0]!["plist"], lines[0]!["changed"], lines[0]!["version"]], [file, true, VERSION]);
    assert.equal(lines[0]!["sudoUid"], kind === "daemon" ? "502" : null);
    assert.deepEqual(lines[1]!["guard"], { path: guard, version: VERSION, previous: VERSION, running: null });
    assert.ok(Math.abs(Date.parse(String(lines[2]!["time"])) - Date.now()) < 600_000);
  }
});

macTest("a log that is a link, a FIFO or another user's is not written, and that is only a note", async () => {
  const rows: [(mac: FakeMac, log: string) => void][] = [
    [(mac, log) => Deno.symlinkSync(mac.write(`${mac.root}/victim`, ""), log)],
    [(_, log) => void new Deno.Command("mkfifo", { args: [log] }).outputSync()],
    [(mac, log) => void mac.write(log, "", ADA, 0o644)],
    [(mac, log) => Deno.linkSync(mac.write(`${mac.root}/victim`, ""), log)],
    [(mac) => Deno.chmodSync(`${mac.system}/var/log`, 0o777)],
  ];
  for (const [n, [spoil]] of rows.entries()) {
    const { mac } = macWith("daemon");
    await using _ = mac;
    spoil(mac, `${mac.system}/var/log/${LOG_NAME}`);
    const run = await mac.run(["--yes", "default"]);
    assert.equal(run.status, 0, `${n}: ${run.stdout}`);
    assert.match(run.stdout, /note: no line was written to /, `${n}: ${run.stdout}`);
    if (mac.exists(`${mac.root}/victim`)) assert.equal(Deno.readTextFileSync(`${mac.root}/victim`), "");
  }
});

macTest(
  "--purge takes the log of installs with the last job, and the logs of the job that lie in the user's folder",
  async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    const logs = `${mac.home}/Library/Logs/lima-guard`;
    for (const name of ["default.stdout.log", "default.stderr.log", "k3s.stdout.log"]) {
      mac.write(
        `${logs}/${name}`,
        "x",
        ZOE,
      );
    }
    assert.equal(mac.logged().length, 1);
    mac.forget();
    const run = await mac.run(["--uninstall", "--purge", "--yes", "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.deepEqual(listed(logs), ["k3s.stdout.log"]);
    assert.ok(mac.log().some((line) => line.startsWith("501: rm -f ")), "by their owner");
    assert.deepEqual([listed(`${mac.system}/var/log`), listed(mac.daemons), Deno.readTextFileSync(file)], [[], [
      `${DAEMON}.plist`,
    ], text]);
  },
);

macTest("--purge takes the folder of the logs too, where nothing else is in it, and the plan says so", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, as } = macWith(kind);
    await using _ = mac;
    mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
    const logs = `${mac.home}/Library/Logs/lima-guard`;
    const args = ["--uninstall", "--purge", "default"];
    const hasStep = (stdout: string) => stdout.includes(`rmdir ${logs}  (--purge: no log is left in it)`);
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    mac.write(`${logs}/.hidden`, "another program's", ZOE);
    assert.ok(!hasStep((await mac.run([...args, "--dry-run"], { as })).stdout), "something else is in it");
    Deno.removeSync(`${logs}/.hidden`);
    mac.own(logs, ADA);
    assert.ok(!hasStep((await mac.run([...args, "--dry-run"], { as })).stdout), "it is another user's");
    mac.own(logs, ZOE);
    const dry = await mac.run([...args, "--dry-run"], { as });
    assert.ok(hasStep(dry.stdout) && mac.exists(logs), dry.stdout);
    const run = await mac.run([...args, "--yes"], { as });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.deepEqual(listed(`${mac.home}/Library/Logs`).filter((name) => name !== LOG_NAME), []);
  }
});

macTest(
  "--purge: what comes into the folder of the logs after the plan was made stays, and so does the uninstall",
  async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
    const log = `${mac.home}/Library/Logs/lima-guard/late.log`;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    const settings = { canAsk: true, whileAsked: `touch ${log}` };
    const run = await mac.run(["--uninstall", "--purge", "default"], { settings });
    assert.equal(run.status, 0, run.stdout + run.stderr);
    assert.deepEqual([mac.exists(log), Deno.readTextFileSync(file)], [true, text]);
  },
);

macTest("--purge leaves the guard while another plist names it", async () => {
  const { mac, text } = macWith("daemon");
  await using _ = mac;
  mac.instance("k3s");
  mac.load("system", mac.daemon("k3s", text.replaceAll("default", "k3s")));
  assert.equal((await mac.run(["--yes", "--all"])).status, 0);
  assert.equal((await mac.run(["--uninstall", "--purge", "--yes", "default"])).status, 0);
  assert.ok(mac.exists(mac.guard));
  assert.equal((await mac.run(["--uninstall", "--purge", "--yes", "k3s"])).status, 0);
  assert.ok(!mac.exists(mac.guard));
  assert.deepEqual(listed(mac.daemons), [`${DAEMON}.plist`, "io.lima-vm.daemon.k3s.plist"]);
});

for (const kind of ["daemon", "agent"] as const) {
  macTest(`${kind}: --purge leaves the tree as it was before the install, and asks for nothing else`, async () => {
    for (const hasOther of [false, true]) {
      const { mac, guard, as } = macWith(kind);
      await using _ = mac;
      const folder = guard.replace(/\/[^/]*$/, "");
      if (hasOther) {
        mac.folder(folder.replace(/\/libexec$/, ""), kind === "daemon" ? ROOT : as);
        mac.folder(folder, as);
        mac.write(`${folder}/other`, "another program's", as);
      }
      const before = mac.tree();
      assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
      const run = await mac.run(["--uninstall", "--purge", "--yes", "default"], { as });
      assert.equal(run.status, 0, run.stdout + run.stderr);
      assert.deepEqual(mac.tree(), before);
      assert.equal(run.stderr.includes(`remove ${folder}  (--purge: no job needs it)`), !hasOther, run.stderr);
    }
  });
}

for (const kind of ["daemon", "agent"] as const) {
  macTest(`${kind}: --purge after an uninstall without it takes what that has left, once for all jobs`, async () => {
    const { mac, guard, domain, text, as } = macWith(kind);
    await using _ = mac;
    mac.instance("k3s");
    mac.load(domain, mac[kind]("k3s", text.replaceAll("default", "k3s")));
    const before = mac.tree();
    assert.equal((await mac.run(["--yes", "--all"], { as })).status, 0);
    assert.equal((await mac.run(["--uninstall", "--yes", "default"], { as })).status, 0);
    assert.equal((await mac.run(["--uninstall", "--yes", "--purge", "default"], { as })).status, 0);
    assert.ok(mac.exists(guard), "k3s needs it");
    assert.equal((await mac.run(["--uninstall", "--yes", "k3s"], { as })).status, 0);
    const dry = await mac.run(["--uninstall", "--purge", "--dry-run", "--all"], { as });
    assert.equal(dry.stdout.split(`remove ${guard}  (`).length, 2, dry.stdout);
    const run = await mac.run(["--uninstall", "--purge", "--yes", "--all", "--json"], { as });
    assert.deepEqual([run.status, JSON.parse(run.stdout).changed], [0, true], run.stdout);
    assert.deepEqual([mac.tree(), mac.logged()], [before, []]);
  });
}

// The plist was removed by another program; its job is still loaded (`limactl autostart disable`), or was booted out.
for (const [kind, isLoaded] of [["agent", true], ["agent", false], ["daemon", true], ["daemon", false]] as const) {
  for (const more of [[], ["--purge"]]) {
    const words = `${kind}, ${isLoaded ? "loaded" : "booted out"}, its plist gone`;
    macTest(`${words}: --uninstall${more.map((m) => ` ${m}`)} asks, and leaves an empty listing`, async () => {
      const { mac, file, as, domain, label, guard, job } = macWith(kind);
      await using _ = mac;
      const folder = file.replace(/\/[^/]*$/, "");
      assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
      Deno.removeSync(file);
      if (!isLoaded) mac.lose(domain, label);
      const args = ["--uninstall", ...more, "default"];
      const asked = await mac.run(args, { as });
      assert.match(asked.stdout, /there is no terminal to ask at/);
      assert.deepEqual(listed(folder), BESIDE.map((suffix) => `${label}.plist${suffix}`));
      const run = await mac.run([...args, "--yes", "--json"], { as });
      assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout + run.stderr);
      assert.deepEqual([listed(folder), job(), mac.exists(guard)], [[], undefined, more.length === 0]);
      assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
      assert.equal((await mac.run(args, { as })).status, 66);
    });
  }
}

macTest("a backup that is left beside another job of the instance is in the way of no uninstall", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  mac.write(`${mac.daemons}/other.plist${BACKUP_SUFFIX}`, text);
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.equal((await mac.run(["--check", "default"])).status, 1, "and no job for --check");
});

for (const domain of ["gui/501", "user/501"]) {
  macTest(
    `a job that is loaded in ${domain} and has no file any more is seen, with the line that ends it`,
    async () => {
      const { mac, file, label } = macWith("agent");
      await using _ = mac;
      mac.lose("gui/501", label);
      mac.load(domain, file);
      Deno.removeSync(file);
      const run = await mac.run(["--check", "default"], { as: ZOE });
      assert.equal(run.status, 1, run.stdout);
      assert.match(
        run.stdout,
        new RegExp(`its plist is gone \\(hint: lima-guard --stop .* && launchctl bootout ${domain}/${AGENT}`),
      );
      assert.equal((await mac.run(["--check", "--all"], { as: ZOE })).status, 1);
    },
  );
}

macTest("--all takes no label for a job that launchd has only noted as enabled or disabled", async () => {
  for (const verb of ["enable", "disable"]) {
    const { mac } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    mac.launchctl([verb, "system/io.lima-vm.daemon.old"]);
    for (const role of ["--check", "--uninstall"]) {
      const run = await mac.run([role, "--yes", "--all", "--json"]);
      const names = JSON.parse(run.stdout).instances.map(({ name }: { name: string }) => name);
      assert.deepEqual([run.status, names], [0, ["default"]], run.stdout);
    }
  }
});

macTest("a backup that cannot be read is kept, and makes an install refuse", async () => {
  const rows: [what: string, spoil: (path: string) => void][] = [
    ["damaged", (path) => Deno.writeTextFileSync(path, "<plist>")],
    ["binary", (path) => Deno.writeTextFileSync(path, "bplist00")],
    ["a link", (path) => {
      Deno.renameSync(path, `${path}.real`);
      Deno.symlinkSync(`${path}.real`, path);
    }],
    ["another user's", (path) => Deno.chownSync(path, 502, 20)],
    ["writable for others", (path) => Deno.chmodSync(path, 0o666)],
    [
      "writable by its access control list",
      (path) =>
        Deno.writeTextFileSync(`${path.replace(/\/system\/.*/, "")}/state/acl`, `${path}\tuser:eve allow write\n`),
    ],
  ];
  for (const [what, spoil] of rows) {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    await mac.run(["--yes", "default"]);
    spoil(file + BACKUP_SUFFIX);
    const run = await mac.run(["--uninstall", "--yes", "default"]);
    assert.equal(run.status, 0, `${what}: ${run.stdout}`);
    assert.match(run.stdout, /is not used: .*it stays where it is/);
    assert.ok(mac.exists(file + BACKUP_SUFFIX), what);
    assert.ok(!Deno.readTextFileSync(file).includes("--run"));
    const again = await mac.run(["--yes", "--json", "default"]);
    assert.deepEqual([again.status, again.json().state], [1, "refused"], `${what}: ${again.stdout}`);
    assert.ok(text.length > 0);
  }
});

// What a backup says that the plist of today does not; how it reads in the plist once it is believed.
const SAID: [what: string, text: string][] = [
  ["ExitTimeOut 0", "<key>ExitTimeOut</key>\n\t<integer>0</integer>"],
  ["KeepAlive", "<key>KeepAlive</key>\n\t<dict><key>SuccessfulExit</key><true/></dict>"],
  ["a folder", "<key>WorkingDirectory</key>\n\t<string>/evil</string>"],
  ["a log", "<key>StandardOutPath</key>\n\t<string>/evil/out</string>"],
  ["a log of errors", "<key>StandardErrorPath</key>\n\t<string>/evil/err</string>"],
  ["an environment", "<key>EnvironmentVariables</key>\n\t<dict><key>LIMA_HOME</key><string>/evil</string></dict>"],
  ["a program", "<key>Program</key>\n\t<string>/evil/limactl</string>"],
  ["a user", "<key>UserName</key>\n\t<string>root</string>"],
];
for (const [what, element] of SAID) {
  macTest(`a backup that another user could have written brings no value back: ${what}`, async () => {
    const key = /<key>(\w+)/.exec(element)![1]!;
    for (const spoil of ["owner", "mode"] as const) {
      const { mac, file, text } = macWith("daemon");
      await using _ = mac;
      mac.settings.devices = [{ prefix: `${mac.home}/.lima`, dev: 99 }];
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      const without = text.replace(new RegExp(`\\s*<key>${key}</key>\\s*<(\\w+)>[^]*?</\\1>`), "");
      const said = without.replace("<key>RunAtLoad", `${element}\n\t<key>RunAtLoad`);
      assert.notEqual(said, text);
      mac.write(file + BACKUP_SUFFIX, said, spoil === "owner" ? ADA : ROOT, spoil === "mode" ? 0o666 : 0o644);
      const run = await mac.run(["--uninstall", "--yes", "default"]);
      assert.equal(run.status, 0, run.stdout);
      const now = Deno.readTextFileSync(file);
      assert.ok(!now.includes("evil") && !now.includes("<integer>0<") && !now.includes("<string>root<"), now);
      assert.match(run.stdout, /is not used: another user could have written it/);
      assert.ok(mac.exists(file + BACKUP_SUFFIX));
      assert.deepEqual([/UserName<\/key>\s*<string>zoe</.test(now), now.includes("--run")], [true, false]);
    }
  });
}

for (const mode of [0o444, 0o600, 0o640]) {
  macTest(`a plist of mode ${mode.toString(8)} has it again after install and uninstall`, async () => {
    const { mac, file, text } = macWith("daemon");
    await using _ = mac;
    mac.own(file, { ...ROOT, gid: 80 }, mode);
    for (const role of ["--install", "--uninstall"]) {
      const run = await mac.run([role, "--yes", "default"]);
      assert.equal(run.status, 0, run.stdout);
      const look = Deno.lstatSync(file);
      assert.deepEqual([look.uid, look.gid, look.mode! & 0o777], [0, 80, mode]);
      if (role === "--install") {
        const backup = Deno.lstatSync(file + BACKUP_SUFFIX);
        assert.deepEqual([backup.uid, backup.gid, backup.mode! & 0o777], [0, 80, mode]);
      }
    }
    assert.equal(Deno.readTextFileSync(file), text);
  });
}

// ── fleets ──

macTest(
  "--all stops at the first job that had to be rolled back; the others are never stopped; the guard is copied once",
  async () => {
    const { mac, text } = macWith("daemon");
    await using _ = mac;
    for (const name of ["k3s", "web"]) {
      mac.instance(name);
      mac.load("system", mac.daemon(name, text.replaceAll("default", name)));
    }
    mac.conf("broken=lima-guard");
    const pids = ["k3s", "web"].map((name) => mac.job("system", `io.lima-vm.daemon.${name}`)!.pid);
    const failed = await mac.run(["--yes", "--all", "--json"]);
    const document = JSON.parse(failed.stdout);
    assert.deepEqual(document.instances.map((i: { state: string }) => i.state), [
      "rolled back",
      "not tried",
      "not tried",
    ]);
    assert.deepEqual([failed.status, document.changed], [1, false]);
    assert.deepEqual(["k3s", "web"].map((name) => mac.job("system", `io.lima-vm.daemon.${name}`)!.pid), pids);
    mac.conf("broken=");
    mac.forget();
    const run = await mac.run(["--yes", "--all"], { settings: { trace: true } });
    assert.equal(run.status, 0, run.stdout);
    assert.equal(mac.effects().filter((line) => /create .*libexec\/lima-guard\.lima-guard-new/.test(line)).length, 1);
  },
);

macTest("no job at all is 66, for every command, with one document", async () => {
  await using mac = FakeMac.make();
  for (const role of ["--check", "--install", "--uninstall"]) {
    const run = await mac.run([role, "--all", "--yes", "--json"]);
    const document = JSON.parse(run.stdout);
    assert.deepEqual([run.status, document.changed, document.instances], [66, false, []], run.stdout);
    assert.match(document.blockers[0].because, /no plist here starts an instance/);
  }
  assert.equal((await mac.run(["--check", "none"])).status, 66);
});

macTest("no answer is no yes: nothing is changed where there is no terminal, nor after a no", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  const unasked = await mac.run(["default"]);
  assert.equal(unasked.status, 1);
  assert.match(unasked.stdout, /no terminal to ask at \(hint: --yes\)/);
  const no = await mac.run(["default"], { settings: { canAsk: true, answer: false } });
  assert.equal(no.status, 1);
  assert.equal(Deno.readTextFileSync(file), text);
  const yes = await mac.run(["default"], { settings: { canAsk: true } });
  assert.equal(yes.status, 0, yes.stdout);
});

macTest("what was planned on and is not so any more is not done: 75", async () => {
  const { mac, file, text, job } = macWith("daemon", { quick: false });
  await using _ = mac;
  const settings = (whileAsked: string) => ({ settings: { canAsk: true, whileAsked } });
  const edited = await mac.run(["default"], settings(`echo >> ${file}`));
  assert.deepEqual([edited.status, Deno.readTextFileSync(file)], [75, `${text}\n`]);
  mac.write(file, text);
  const gone = await mac.run(["default"], settings(`${mac.root}/bin/launchctl standin-lose system/${DAEMON}`));
  assert.equal(gone.status, 75, gone.stdout);
  assert.equal(job(), undefined);
});

macTest(
  "two installs at once: one does it, the other says 75 and names the PID; any user's lock changes nothing",
  async () => {
    const { mac: whole } = macWith("daemon", { trace: true });
    await using _whole = whole;
    assert.equal((await whole.run(["--yes", "default"])).status, 0);
    const freezeAt = whole.effects().findIndex((line) => line.includes(" make ")) + 1;
    const { mac, file } = macWith("daemon");
    await using _ = mac;
    const first = mac.start(["--yes", "default"], { settings: { freezeAt } });
    const reader = first.stderr.getReader();
    for (let text = ""; !text.includes("frozen");) {
      const { value, done } = await reader.read();
      assert.ok(!done, text);
      text += new TextDecoder().decode(value);
    }
    const second = await mac.run(["--yes", "--json", "default"]);
    first.kill("SIGKILL");
    await Promise.all([first.status, reader.cancel(), first.stdout.cancel()]);
    assert.equal(second.status, 75, second.stdout);
    assert.match(second.json().blockers[0].because, /another install \(PID \d+\)/);
    const lock = `${mac.system}/var/db/lima-guard-install.lock`;
    const { uid, mode } = Deno.lstatSync(lock);
    assert.deepEqual([uid, mode! & 0o777], [0, 0o600]);
    await using eves = new AsyncDisposableStack();
    for (const path of [lock, `${mac.system}/var/db`, mac.daemons, file]) {
      const held = await holdLock(path, EVE);
      eves.defer(async () => {
        held?.kill();
        await held?.status;
      });
      assert.equal(held !== undefined, path !== lock, `${path}: eve can open what every user may read`);
    }
    const third = await mac.run(["--yes", "default"]);
    assert.equal(third.status, 0, third.stdout);
  },
);

/** A process of this person that holds the lock of a path; undefined where he may not open it. */
async function holdLock(path: string, { uid, gid }: Person): Promise<Deno.ChildProcess | undefined> {
  const script = 'exec 2>/dev/null 9<"$1" && flock -n 9 && echo held && exec sleep 60';
  const args = [`--reuid=${uid}`, `--regid=${gid}`, "--clear-groups", "bash", "-c", script, "sh", path];
  const child = new Deno.Command("setpriv", { args, stdout: "piped" }).spawn();
  const { value } = await child.stdout.values({ preventCancel: true }).next();
  if (value !== undefined) return child;
  await child.status;
  return undefined;
}

// What is in the lock's place; whether the lock of an agent's owner is meant.
const LOCKS: [what: string, put: (mac: FakeMac, lock: string, by: Person) => void][] = [
  ["a link to a file", (mac, lock) => Deno.symlinkSync(`${mac.root}/victim`, lock)],
  ["a link that leads nowhere", (mac, lock) => Deno.symlinkSync(`${mac.root}/nowhere`, lock)],
  ["a FIFO", (mac, lock, by) => {
    new Deno.Command("mkfifo", { args: [lock] }).outputSync();
    mac.own(lock, by);
  }],
  ["a folder", (mac, lock, by) => mac.folder(lock, by)],
  ["another user's file", (mac, lock) => void mac.write(lock, "1\n", EVE, 0o666)],
];
for (const [what, put] of LOCKS) {
  macTest(`${what} in the lock's place is refused, and nothing is changed`, async () => {
    for (const kind of ["daemon", "agent"] as const) {
      const { mac, as, job } = macWith(kind);
      await using _ = mac;
      const lock = kind === "daemon"
        ? `${mac.system}/var/db/lima-guard-install.lock`
        : `${mac.home}/.lima-guard-install.lock`;
      mac.write(`${mac.root}/victim`, "theirs", ROOT, 0o666);
      put(mac, lock, as);
      const [before, pid] = [mac.tree(), job()!.pid];
      const run = await mac.run(["--yes", "--json", "default"], { as });
      assert.deepEqual([run.status, run.json().state], [1, "refused"], run.stdout + run.stderr);
      assert.equal(run.json().blockers[0].because, `Cannot take the lock ${lock}: it is not a file of this user`);
      assert.equal(run.json().blockers[0].hint, `ls -l ${lock}`);
      assert.deepEqual([mac.tree(), job()!.pid, mac.exists(`${mac.root}/nowhere`)], [before, pid, false]);
    }
  });
}

macTest("a user's lock and log are in the home of his account, whatever HOME says", async () => {
  const { mac, as } = macWith("agent");
  await using _ = mac;
  mac.folder(`${mac.root}/shared`, ROOT, 0o1777);
  mac.write(`${mac.root}/shared/.lima-guard-install.lock`, "", EVE);
  for (const [n, HOME] of [`${mac.root}/home/ada`, "", `${mac.root}/shared`].entries()) {
    const run = await mac.run(["--yes", "--exit-timeout", `${70 + n}`, "default"], { as, env: { HOME } });
    assert.equal(run.status, 0, `${HOME}: ${run.stdout}${run.stderr}`);
    assert.equal(mac.logged().length, n + 1);
  }
  assert.ok(mac.exists(`${mac.home}/.lima-guard-install.lock`));
});

macTest("--json has stable fields, also where it refuses", async () => {
  const { mac, as } = macWith("agent");
  await using _ = mac;
  const fields = "name state status changed stage seconds steps blockers notes changes plist guard".split(" ").sort();
  const rows: [args: string[], status: number][] = [
    [["--dry-run", "default"], 0],
    [["default"], 1],
    [["--yes", "none"], 66],
    [["--yes", "--exit-timeout", "80", "default"], 0],
    [["--check", "default"], 0],
    [["--uninstall", "--yes", "default"], 0],
  ];
  for (const [args, status] of rows) {
    const before = mac.tree();
    const run = await mac.run(["--json", ...args], { as });
    assert.equal(run.status, status, run.stdout);
    const document = JSON.parse(run.stdout);
    assert.deepEqual(Object.keys(document).sort(), ["changed", "instances", "role", "version"]);
    assert.deepEqual(Object.keys(document.instances[0]).sort(), fields);
    const hasChanged = JSON.stringify(mac.tree()) !== JSON.stringify(before);
    assert.equal(document.changed, hasChanged || args.includes("--dry-run"), args.join(" "));
    assert.equal(document.changed, document.instances[0].changed);
  }
  const usage = await mac.run(["--json", "--nonsense"], { as });
  assert.deepEqual([usage.status, JSON.parse(usage.stdout).changed], [64, false]);
});

macTest(
  "a process that is still there after its job is gone is waited for, and no new job is loaded beside it",
  async () => {
    const { mac } = macWith("daemon");
    await using _ = mac;
    mac.conf("agent=0", "lingers=1");
    const run = await mac.run(["--yes", "--json", "default"], { settings: { limits: { goneMs: 500 } } });
    assert.equal(run.status, 1, run.stdout);
    assert.match(run.json().blockers[0].because, /PID \d+ still lives/);
  },
);

macTest("a file has its bytes on the disk before it gets its name, and its folder is synced after", async () => {
  const { mac, file } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"], { settings: { trace: true } })).status, 0);
  const effects = mac.effects().map((line) => line.replace(/^0 /, ""));
  for (const path of [mac.guard, file, file + BACKUP_SUFFIX]) {
    const created = effects.findIndex((line) => line.startsWith(`create ${path}.lima-guard-new-`));
    const beside = effects[created]!.slice("create ".length);
    const renamed = effects.indexOf(`rename ${beside}`);
    const synced = effects.indexOf(`sync ${path.replace(/\/[^/]*$/, "")}`, renamed);
    assert.ok(created >= 0 && renamed > created && synced > renamed, `${path}\n${effects.join("\n")}`);
    assert.ok(synced - renamed <= 2, "at once");
  }
});

macTest("a disabled job that a killed run has left enabled is disabled again, also after a boot", async () => {
  for (const boot of ["BOOT-0", "BOOT-1"]) {
    for (const role of ["--install", "--uninstall"]) {
      const { mac, file, domain, label, job } = macWith("daemon");
      await using _ = mac;
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      const { pid } = job()!;
      mac.write(
        `${file}.lima-guard.json`,
        JSON.stringify({ bootedOut: { boot, wasRunning: true, wasDisabled: true } }),
      );
      const checked = await mac.run(["--check", "default"]);
      assert.equal(checked.status, 1, checked.stdout);
      assert.match(checked.stdout, /was disabled, and a run that was interrupted has left it enabled/);
      assert.equal((await mac.run([role, "--yes", "default"])).status, 0);
      assert.deepEqual([mac.isDisabled(domain, label), job()!.pid === pid], [true, role === "--install"]);
      if (role === "--install") assert.equal((await mac.run(["--check", "default"])).status, 0);
      mac.launchctl(["enable", `${domain}/${label}`]);
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      assert.equal(mac.isDisabled(domain, label), false, "it is forgotten");
    }
  }
});

macTest("Disabled in the plist counts until launchd has a word of its own", async () => {
  const { mac, file, text, domain, label, job } = macWith("daemon");
  await using _ = mac;
  mac.lose(domain, label);
  mac.write(file, text.replace("<key>RunAtLoad</key>", "<key>Disabled</key>\n\t<true/>\n\t<key>RunAtLoad</key>"));
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const off = await mac.run(["--check", "--json", "default"]);
  assert.deepEqual([off.status, off.json().state], [0, "guarded, off"], off.stdout);
  assert.match(off.stdout, /the job is disabled: launchd does not start it/);
  assert.doesNotMatch(off.stdout, /starts at the next boot/);
  assert.equal((await mac.run(["--yes", "--start", "default"])).status, 0);
  assert.ok(job()?.pid !== undefined);
  const on = await mac.run(["--check", "--json", "default"]);
  assert.deepEqual([on.status, on.json().state], [0, "guarded"], on.stdout);
});

macTest("which boot this is cannot be found out: 75, and nothing is done", async () => {
  const { mac, file, domain, label, job } = macWith("daemon");
  await using _ = mac;
  mac.lose(domain, label);
  mac.write(`${file}.lima-guard.json`, JSON.stringify({ bootedOut: { boot: "unknown", wasRunning: true } }));
  const before = mac.tree();
  for (const role of ["--install", "--check", "--uninstall"]) {
    mac.forget();
    mac.fault("sysctl:1 1");
    const run = await mac.run([role, "--yes", "--json", "default"]);
    assert.deepEqual(
      [run.status, run.json().state, JSON.parse(run.stdout).changed],
      [75, "unknown", false],
      run.stdout,
    );
  }
  assert.deepEqual([mac.tree(), job()], [before, undefined]);
});

macTest("a job that was booted out in another boot is off, and stays off", async () => {
  const { mac, file, domain, label, job } = macWith("daemon");
  await using _ = mac;
  const noted = (boot: string) => JSON.stringify({ bootedOut: { boot, wasRunning: true } });
  mac.lose(domain, label);
  mac.write(`${file}.lima-guard.json`, noted("BOOT-0"));
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.equal(job(), undefined);
  mac.write(`${file}.lima-guard.json`, noted("BOOT-1"));
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  assert.ok(job()!.pid !== undefined, "it was booted out by an install in this boot");
});

/** `--check` is green only where the job would really come up at the next boot, and never disagrees with install. */

import assert from "node:assert/strict";
import { MEMORY_SUFFIX } from "../install.ts";
import { VERSION } from "../lima_guard.ts";
import {
  ADA,
  AGENT,
  DAEMON,
  EVE,
  FakeMac,
  fixture,
  guarded,
  limactl,
  macTest,
  macWith,
  type Person,
  ROOT,
  ZOE,
} from "./install_mac.ts";

// What is broken in a guarded daemon; what --check says; its status.
const BROKEN: [what: string, spoil: (mac: FakeMac, file: string) => void, words: RegExp, status?: number][] = [
  [
    "the instance is gone",
    (mac) => Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true }),
    /the instance is gone/,
  ],
  [
    "its volume is not mounted",
    (mac) => Deno.removeSync(`${mac.home}/.lima`, { recursive: true }),
    /not mounted now/,
    75,
  ],
  ["limactl has moved", (mac) => {
    mac.folder(`${mac.system}/usr/local/bin`);
    Deno.renameSync(`${mac.root}/opt/homebrew/bin/limactl`, `${mac.system}/usr/local/bin/limactl`);
  }, /limactl is gone; there is one at .*usr\/local\/bin\/limactl/],
  [
    "limactl is a bare name that is not on the job's PATH",
    (mac, file) => edited(mac, file, `${mac.root}/opt/homebrew/bin/limactl`, "limactl"),
    /the program limactl is gone; there is one at .*homebrew\/bin\/limactl/,
  ],
  [
    "limactl is on another volume",
    (mac) => mac.settings.devices = [{ prefix: `${mac.root}/opt`, dev: 99 }],
    /the program \S+limactl is on another volume/,
  ],
  [
    "its log is on another volume",
    (mac, file) => {
      mac.folder(`${mac.root}/logs`, ZOE);
      mac.settings.devices = [{ prefix: `${mac.root}/logs`, dev: 99 }];
      edited(mac, file, "launchd.stderr.log", `${mac.root}/logs/vm.log`);
    },
    /logs\/vm\.log is on another volume/,
  ],
  ["the guard is gone", (mac) => Deno.removeSync(mac.guard), /lima-guard is not there/],
  ["the guard does not answer", (mac) => mac.conf("guard_version=nonsense"), /does not answer to --version/],
  [
    "the guard is not on the boot volume",
    (mac) => mac.settings.devices = [{ prefix: mac.guards, dev: 9 }],
    /boot volume/,
  ],
  [
    "the loaded job is bare",
    (mac) => reloaded(mac, fixture(mac, "lima-2.2-daemon")),
    /loaded job does not run lima-guard/,
  ],
  [
    "the loaded job has another exit timeout",
    (mac, file) => reloaded(mac, Deno.readTextFileSync(file).replace("<integer>60<", "<integer>30<")),
    /exit timeout of 30 s in force/,
  ],
  [
    "the plist grants too little",
    (mac, file) => edited(mac, file, "<integer>60<", "<integer>20<"),
    /grants 20 s for a stop/,
  ],
  [
    "a stop has one second",
    (mac, file) =>
      edited(mac, file, "<string>--</string>", "<string>--timeout</string><string>1</string><string>--</string>"),
    /--timeout 1 in the plist leaves a stop 1 s/,
  ],
  [
    "Lima has written the plist again",
    (mac, file) => mac.write(file, fixture(mac, "lima-2.2-daemon")),
    /does not run lima-guard/,
  ],
  [
    "KeepAlive is the wrong way round",
    (mac, file) =>
      edited(
        mac,
        file,
        "<key>RunAtLoad",
        "<key>KeepAlive</key><dict><key>SuccessfulExit</key><true/></dict><key>RunAtLoad",
      ),
    /SuccessfulExit: true.*after a requested stop/,
  ],
  [
    "RunAtLoad was taken out of the file after loading",
    (mac, file) => edited(mac, file, "<true/>", "<false/>"),
    /launchd starts it by itself, and the plist no more/,
  ],
  [
    "the job is ending",
    (mac) => {
      mac.conf("dying=50");
      mac.launchctl(["bootout", `system/${DAEMON}`]);
    },
    /is ending, and will not be loaded then/,
  ],
  [
    "an install was interrupted after it had booted the job out",
    (mac, file) => {
      mac.write(file + MEMORY_SUFFIX, JSON.stringify({ bootedOut: { boot: "BOOT-1", wasRunning: true } }));
      mac.lose("system", DAEMON);
    },
    /booted the job out, and has not loaded it again/,
  ],
  [
    "launchd could not start it",
    (mac) => {
      const { pid } = mac.job("system", DAEMON)!;
      mac.write(`${mac.state}/exit/${pid}`, "78");
      Deno.removeSync(`${mac.state}/alive/${pid}`);
    },
    /launchd could not start it: last exit code 78: EX_CONFIG/,
  ],
  ["launchd does not answer", (mac) => mac.fault("print:1 1"), /launchctl print: status 1/, 75],
  ["it is not said whether it is disabled", (mac) => mac.fault("print-disabled:1 5"), /print-disabled did not say/, 75],
];

function edited(mac: FakeMac, file: string, from: string, to: string): void {
  const text = Deno.readTextFileSync(file);
  assert.ok(text.includes(from), text);
  mac.write(file, text.replace(from, to));
}

/** launchd has loaded another text than the file has now. */
function reloaded(mac: FakeMac, text: string, file = `${mac.daemons}/${DAEMON}.plist`): void {
  const now = Deno.readTextFileSync(file);
  for (let n = 0; n < 4; n++) {
    if (mac.job("system", DAEMON) === undefined) break;
    if (n === 0) mac.launchctl(["bootout", `system/${DAEMON}`]);
    else mac.launchd.control(["print", `system/${DAEMON}`]);
  }
  mac.write(file, text);
  mac.launchctl(["bootstrap", "system", file]);
  mac.write(file, now);
}

for (const [what, spoil, words, status = 1] of BROKEN) {
  macTest(`--check is ${status} when ${what}, for root and for the owner`, async () => {
    const { mac, file } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    for (const as of [ROOT, ZOE]) {
      const run = await mac.run(["--check", "default"], { as });
      assert.equal(run.status, 0, run.stdout);
    }
    mac.forget();
    spoil(mac, file);
    const faults = mac.exists(`${mac.state}/fault`) ? Deno.readTextFileSync(`${mac.state}/fault`) : undefined;
    for (const as of [ROOT, ZOE]) {
      mac.forget();
      if (faults !== undefined) mac.fault(faults);
      const run = await mac.run(["--check", "--json", "default"], { as });
      assert.deepEqual([run.status, JSON.parse(run.stdout).changed], [status, false], run.stdout);
      assert.match(run.json().blockers.map((b: { because: string }) => b.because).join("\n"), words);
      assert.ok(run.json().blockers.every((b: { hint?: string }) => b.hint !== undefined), run.stdout);
    }
  });
}

macTest("a dry run asks a lima-guard that is in place, as the run itself does, and changes nothing", async () => {
  for (const kind of ["daemon", "agent"] as const) {
    const { mac, as } = macWith(kind);
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    assert.equal((await mac.run(["--dry-run", "default"], { as })).status, 0);
    mac.conf("guard_version=nonsense");
    const before = [mac.tree(), mac.logged()];
    for (const how of ["--dry-run", "--yes"]) {
      const run = await mac.run([how, "--json", "default"], { as });
      assert.deepEqual([run.status, run.json().state, run.json().changed], [1, "refused", false], run.stdout);
      assert.match(run.json().blockers[0].because, /it did not say its version to zoe/);
    }
    assert.deepEqual([mac.tree(), mac.logged()], before);
  }
});

// What the job's user may not use of what is there for root; what root's --check and install say.
const CLOSED: [what: string, spoil: (mac: FakeMac) => void, words: RegExp][] = [
  ["his Lima home", (mac) => mac.folder(`${mac.home}/.lima`, ADA, 0o700), /zoe may not read \S+default\/lima.yaml/],
  ["lima.yaml", (mac) => mac.own(`${mac.home}/.lima/default/lima.yaml`, ADA, 0o600), /zoe may not read/],
  ["limactl", (mac) => Deno.chmodSync(`${mac.root}/opt/homebrew/bin/limactl`, 0o700), /zoe may not run \S+limactl/],
  ["limactl's folder", (mac) => Deno.chmodSync(`${mac.root}/opt/homebrew/bin`, 0o700), /zoe may not run \S+limactl/],
  ["the program for events", (mac) => Deno.chmodSync(`${mac.root}/hook`, 0o700), /--on-event: .*zoe may not run/],
];
for (const [what, spoil, words] of CLOSED) {
  macTest(`root looks as the job's user, who may not use ${what}: --check is 1, and install refuses`, async () => {
    const { mac, job } = macWith("daemon");
    await using _ = mac;
    mac.write(`${mac.root}/hook`, "#!/bin/sh\n", ROOT, 0o755);
    assert.equal((await mac.run(["--yes", "--on-event", `${mac.root}/hook`, "default"])).status, 0);
    spoil(mac);
    const { pid } = job()!;
    for (const how of ["--check", "--install"]) {
      const run = await mac.run([how, "--yes", "--restart", "--json", "default"]);
      assert.equal(run.status, 1, run.stdout);
      assert.match(run.json().blockers[0].because, words);
    }
    assert.equal(job()!.pid, pid);
  });
}

macTest("the job's user does not answer what he may use: unknown, 75", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  mac.forget();
  mac.fault("test:1 after:2", "test:2 2");
  const run = await mac.run(["--check", "--json", "default"]);
  assert.deepEqual([run.status, run.json().state], [75, "unknown"], run.stdout);
});

// What launchd has otherwise than the file says; --check names it, --install loads the job again, and all is well.
const OTHERWISE: [what: string, spoil: (mac: FakeMac, file: string) => void, words: RegExp][] = [
  [
    "a larger exit timeout",
    (mac, file) => reloaded(mac, Deno.readTextFileSync(file).replace("<integer>60<", "<integer>120<")),
    /exit timeout of 120 s in force/,
  ],
  [
    "another path",
    (mac, file) => {
      const other = mac.write(`${mac.daemons}/other.plist`, Deno.readTextFileSync(file));
      reloaded(mac, Deno.readTextFileSync(file), other);
      Deno.removeSync(other);
    },
    /has loaded the job from \S+other.plist/,
  ],
];
for (const [what, spoil, words] of OTHERWISE) {
  macTest(`launchd has ${what}: what --check names is over after an install`, async () => {
    const { mac, file } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    spoil(mac, file);
    const checked = await mac.run(["--check", "default"]);
    assert.equal(checked.status, 1, checked.stdout);
    assert.match(checked.stdout, words);
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    const again = await mac.run(["--check", "default"]);
    assert.equal(again.status, 0, again.stdout);
  });
}

macTest(
  "a home that is a link: launchd has the job from the path as the account has it, and that is right",
  async () => {
    const { mac, file, as } = macWith("agent");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
    mac.lose("gui/501", AGENT);
    Deno.renameSync(mac.home, `${mac.root}/home/real`);
    Deno.symlinkSync("real", mac.home);
    mac.load("gui/501", file);
    const run = await mac.run(["--check", "default"], { as });
    assert.equal(run.status, 0, run.stdout);
  },
);

macTest(
  "a launchd that gives no answer in one of its domains makes the job unknown, whatever the others say",
  async () => {
    const { mac, file } = macWith("agent");
    await using _ = mac;
    const unsaid = async (role: string, name: string, fault: string) => {
      mac.forget();
      mac.fault(fault);
      const run = await mac.run([role, "--yes", name], { as: ZOE });
      assert.equal(run.status, 75, `${role} ${name}: ${run.stdout}${run.stderr}`);
      assert.match(run.stdout + run.stderr, /launchctl print: status 1|Cannot tell what launchd has/);
    };
    assert.equal((await mac.run(["--yes", "default"], { as: ZOE })).status, 0);
    mac.lose("gui/501", AGENT);
    mac.load("user/501", file);
    for (const role of ["--check", "--install"]) await unsaid(role, "default", "print:2 1");
    await unsaid("--check", "--all", "print:2 1");
    Deno.removeSync(file);
    await unsaid("--check", "default", "print:2 1");
    await unsaid("--check", "--all", "print:1 killed");
  },
);

macTest(
  "logs on another volume are moved to the user's home; a daemon whose user's home is there is refused",
  async () => {
    for (const isHome of [false, true]) {
      const { mac, file, text } = macWith("daemon");
      await using _ = mac;
      mac.folder(`${mac.root}/logs`, ZOE);
      mac.settings.devices = [{ prefix: isHome ? mac.home : `${mac.root}/logs`, dev: 99 }];
      if (!isHome) mac.daemon("default", text.replace("launchd.stderr.log", `${mac.root}/logs/vm.log`));
      const run = await mac.run(["--yes", "default"]);
      assert.equal(run.status, isHome ? 1 : 0, run.stdout);
      const now = Deno.readTextFileSync(file);
      if (!isHome) assert.ok(now.includes(`${mac.home}/Library/Logs/lima-guard/default.stderr.log`), now);
      else assert.match(run.stdout, /is on another volume.*hint: sudo plutil -remove StandardOutPath \S+; sudo plutil/);
      const checked = await mac.run(["--check", "default"]);
      assert.equal(checked.status, isHome ? 1 : 0, checked.stdout);
    }
  },
);

macTest("a job that logs to /dev/null, or to a file that Deno may not look at, keeps its logs", async () => {
  for (const [quick, log] of [[true, "/dev/null"], [false, "/dev/null"], [false, "/proc/self/log"]] as const) {
    const { mac, file, text } = macWith("daemon", { quick });
    await using _ = mac;
    const now = mac.daemon("default", text.replace("launchd.stderr.log", log));
    reloaded(mac, Deno.readTextFileSync(now));
    for (const role of ["--install", "--check"]) {
      const run = await mac.run([role, "--yes", "default"]);
      assert.equal(run.status, 0, `${role} ${log}: ${run.stdout}${run.stderr}`);
    }
    if (log === "/dev/null") assert.ok(Deno.readTextFileSync(file).includes(`<string>${log}</string>`));
  }
});

macTest("root's --check of a login agent ends as its user's does, with and without --json", async () => {
  const { mac, file } = macWith("agent", { quick: false });
  await using _ = mac;
  for (const status of [1, 0]) {
    for (const more of [[], ["--json"]]) {
      const run = await mac.run(["--check", ...more, "--plist", file, "default"]);
      assert.equal(run.status, status, run.stdout + run.stderr);
    }
    if (status > 0) assert.equal((await mac.run(["--yes", "default"], { as: ZOE })).status, 0);
  }
});

macTest(
  "limactl as a bare name is looked for on launchd's PATH; where that is not known, install continues",
  async () => {
    for (const isLoaded of [true, false]) {
      const { mac, file, text, job } = macWith("agent");
      await using _ = mac;
      const bare = text.replace(/<string>[^<]*\/limactl</, "<string>limactl<");
      const variables = `<key>PATH</key><string>/usr/bin:${mac.root}/opt/homebrew/bin</string>`;
      const own = bare.replace(
        "<key>RunAtLoad",
        `<key>EnvironmentVariables</key><dict>${variables}</dict><key>RunAtLoad`,
      );
      mac.lose("gui/501", AGENT);
      mac.write(file, own, ZOE);
      if (isLoaded) mac.load("gui/501", file);
      mac.write(file, bare, ZOE);
      const run = await mac.run(["--yes", "default"], { as: ZOE });
      assert.equal(run.status, 0, run.stdout);
      assert.match(Deno.readTextFileSync(file), /--run/);
      assert.equal(job() !== undefined, isLoaded);
      if (isLoaded) continue;
      const checked = await mac.run(["--check", "default"], { as: ZOE });
      assert.equal(checked.status, 75, checked.stdout);
      assert.match(
        checked.stdout,
        /where launchd finds the program limactl is not known.*hint: write the whole path of/,
      );
    }
  },
);

macTest(
  "a daemon's plist that is named on the Data volume is launchd's: check, and uninstall gives it back",
  async () => {
    const { mac, file, text, job } = macWith("daemon");
    await using _ = mac;
    const named = mac.firmlinked(file);
    for (
      const [role, words] of [["--install", /./], ["--check", /guarded: .* running/], ["--uninstall", /./]] as const
    ) {
      const run = await mac.run([role, "--yes", "--plist", named, "default"]);
      assert.equal(run.status, 0, run.stdout);
      assert.match(run.stdout, words);
    }
    assert.equal(Deno.readTextFileSync(file), text);
    assert.ok(!job()!.args.includes("--run"));
  },
);

macTest("a limactl on another volume: one on the boot volume helps, and --uninstall continues", async () => {
  const { mac, file, text, job } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  mac.settings.devices = [{ prefix: `${mac.root}/opt/homebrew`, dev: 77 }];
  const hint = async (...args: string[]) => (await mac.run([...args, "--json", "default"])).json().blockers[0].hint;
  const enable = "limactl autostart enable default --condition=boot";
  assert.equal(await hint("--check"), `install limactl on the boot volume, then ${enable}`);
  assert.equal(await hint("--yes", "--restart"), `install limactl on the boot volume, then ${enable}`);
  mac.folder(`${mac.system}/usr/local/bin`);
  mac.write(`${mac.system}/usr/local/bin/limactl`, "#!/bin/sh\n", ROOT, 0o755);
  assert.equal(await hint("--check"), `${mac.system}/usr/local/bin/${enable}`);
  assert.equal((await mac.run(["--uninstall", "--yes", "default"])).status, 0);
  assert.deepEqual([Deno.readTextFileSync(file), job()!.args], [text, limactl(mac)]);
});

// Where a guarded agent's file is put, or what is done to it; the status of --check of that file, and what is said.
const PLACES: [what: string, put: (mac: FakeMac, file: string) => string, status: number, words: RegExp][] = [
  ["a copy in another folder", (mac, file) => moved(file, `${mac.home}/copy.plist`), 1, /launchd reads no job from/],
  [
    "another folder called LaunchAgents",
    (mac, file) => {
      mac.folder(`${mac.home}/old/Library/LaunchAgents`, ZOE);
      return moved(file, `${mac.home}/old/Library/LaunchAgents/${AGENT}.plist`);
    },
    1,
    /launchd reads no job from/,
  ],
  ["a name that does not end in .plist", (_, file) => moved(file, `${file}.off`), 1, /launchd reads no job from/],
  [
    "a LaunchAgents that is a link",
    (mac, file) => {
      Deno.renameSync(mac.agents, `${mac.home}/dotfiles`);
      Deno.symlinkSync(`${mac.home}/dotfiles`, mac.agents);
      return file;
    },
    0,
    /guarded: .* running/,
  ],
  [
    "a LaunchAgents that is named on the Data volume",
    (mac, file) => mac.firmlinked(file),
    0,
    /guarded: .* running/,
  ],
  [
    "a Label that was changed since",
    (mac, file) => {
      const own = moved(file, `${mac.agents}/my.vm.plist`);
      const text = Deno.readTextFileSync(own);
      mac.write(own, text.replace(AGENT, "my.vm"), ZOE);
      mac.load("gui/501", own);
      return mac.write(own, text.replace(AGENT, "my.other.vm"), ZOE);
    },
    1,
    /loaded as gui\/501\/my\.vm, and its Label is "my\.other\.vm" now/,
  ],
];
function moved(from: string, to: string): string {
  Deno.renameSync(from, to);
  return to;
}
for (const [what, put, status, words] of PLACES) {
  macTest(`a guarded agent in ${what}: --check is ${status}, and --install agrees`, async () => {
    const { mac, file } = macWith("agent");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"], { as: ZOE })).status, 0);
    const now = put(mac, file);
    for (const role of ["--check", "--install"]) {
      const run = await mac.run([role, "--yes", "--plist", now, "default"], { as: ZOE });
      assert.equal(run.status, status, `${role}: ${run.stdout}`);
      if (status > 0 || role === "--check") assert.match(run.stdout, words);
      if (/no job from/.test(run.stdout) && role === "--check") {
        assert.match(run.stdout, /\(hint: lima-guard --check default\)/);
      }
    }
  });
}

macTest("what --check calls broken in the world install refuses, and does not call done", async () => {
  for (const spoil of [0, 2, 3, 4, 7].map((i) => BROKEN[i]!)) {
    const { mac, file } = macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    spoil[1](mac, file);
    const run = await mac.run(["--yes", "--json", "default"]);
    assert.equal(run.status, 1, `${spoil[0]}: ${run.stdout}`);
  }
});

macTest("a job that is loaded twice is named with both domains, and refused", async () => {
  const { mac, file, as } = macWith("agent");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"], { as })).status, 0);
  mac.launchctl(["bootstrap", "user/501", file], ZOE);
  const checked = await mac.run(["--check", "default"], { as });
  assert.equal(checked.status, 1, checked.stdout);
  assert.match(checked.stdout, /loaded twice: in gui\/501 and in user\/501 \(hint: launchctl bootout user\/501\//);
  for (const args of [["--restart"], ["--uninstall"]]) {
    const run = await mac.run(["--yes", ...args, "default"], { as });
    assert.equal(run.status, 1, run.stdout);
    assert.match(run.stdout, /loaded twice: .* \(hint: launchctl bootout user\/501\//);
  }
});

macTest("a bare job of Colima's that is loaded twice is to be stopped in Colima's own home", async () => {
  await using mac = FakeMac.make();
  const file = mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, fixture(mac, "homebrew-colima"), ZOE);
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  for (const domain of ["gui/501", "user/501"]) mac.load(domain, file);
  const run = await mac.run(["--check", "--json", "colima"], { as: ZOE });
  const stop = `lima-guard --stop --lima-home ${mac.home}/.colima/_lima colima`;
  const hint = `${stop} && launchctl bootout user/501/homebrew.mxcl.colima`;
  assert.deepEqual([run.status, run.json().blockers[0].hint], [1, hint], run.stdout);
});

macTest("what another user may not see is unknown, never gone and never green", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  Deno.chmodSync(mac.home, 0o700);
  for (const as of [EVE, ADA]) {
    const run = await mac.run(["--check", "--json", "default"], { as });
    assert.deepEqual([run.status, run.json().state], [75, "unknown"], run.stdout);
    assert.match(run.json().blockers[0].because, /may not be looked at/);
  }
  for (const as of [ROOT, ZOE]) assert.equal((await mac.run(["--check", "default"], { as })).status, 0);
});

// A job of root's without a user, and a job that is not there: what is said, by the tool that starts the instance.
for (const [tool, name] of [["limactl", "default"], ["colima", "colima"]] as const) {
  macTest(`what to do about a job that would run as root, or is missing, is said for ${tool}`, async () => {
    await using mac = FakeMac.make();
    mac.instance("colima", `${mac.home}/.colima/_lima`);
    const hintOf = async (status: number, as = ROOT) => {
      const run = await mac.run(["--yes", "--json", name], { as });
      assert.equal(run.status, status, run.stdout + run.stderr);
      return run.json().blockers[0].hint;
    };
    const missing = tool === "limactl" ? /^limactl autostart enable default; / : /^brew services start colima; /;
    assert.match(await hintOf(66, ZOE), missing);
    const brew = fixture(mac, "homebrew-colima").replace("opt/colima/bin/", "bin/");
    const lima = fixture(mac, "lima-2.2-daemon").replace(/<key>UserName<\/key>\s*<string>zoe<\/string>/, "");
    const file = tool === "limactl"
      ? mac.daemon(name, lima)
      : mac.write(`${mac.daemons}/homebrew.mxcl.colima.plist`, brew);
    const needsUser = tool === "limactl"
      ? "limactl autostart enable default --condition=boot writes one with UserName"
      : `sudo plutil -insert UserName -string USER ${file}`;
    assert.equal(await hintOf(1), needsUser);
  });
}

macTest("a job under any label is found by what it runs; Nix's is read, and what to declare is said", async () => {
  await using mac = FakeMac.make();
  mac.instance("colima", `${mac.home}/.colima/_lima`);
  mac.folder(`${mac.home}/.colima`, ZOE);
  const brew = fixture(mac, "homebrew-colima").replace("opt/colima/bin/", "bin/");
  mac.load("gui/501", mac.write(`${mac.agents}/homebrew.mxcl.colima.plist`, brew, ZOE));
  const bare = await mac.run(["--check", "--all", "--json"], { as: ZOE });
  assert.deepEqual([bare.status, bare.json().name, bare.json().state], [1, "colima", "not guarded"], bare.stdout);
  assert.match(bare.json().blockers[0].because, /brew services/);

  const limactl = `${mac.root}/opt/homebrew/bin/limactl start default --foreground`;
  const nix = (command: string) =>
    fixture(mac, "lima-2.2-daemon").replace("io.lima-vm.daemon.default", "org.nixos.lima").replace(
      /<array>[^]*<\/array>/,
      `<array><string>/bin/sh</string><string>-c</string><string>/bin/wait4path /nix/store &amp;&amp; exec ${command}</string></array>`,
    );
  const file = mac.write(`${mac.daemons}/org.nixos.lima.plist`, nix(limactl));
  const refused = await mac.run(["--yes", "default"]);
  assert.equal(refused.status, 1, refused.stdout);
  assert.match(
    refused.stdout,
    /Nix made it \(hint: .*; then declare there: exec .*lima-guard --run default -- .*limactl start/,
  );
  mac.putGuard(mac.guard);
  mac.write(
    file,
    nix(guarded(mac).join(" ")).replace("<key>RunAtLoad", "<key>ExitTimeOut</key><integer>60</integer><key>RunAtLoad"),
  );
  mac.load("system", file);
  const checked = await mac.run(["--check", "--json", "default"]);
  assert.deepEqual([checked.status, checked.json().state], [0, "guarded"], checked.stdout);
});

macTest(
  "a login agent of Nix's: what is printed is put there and declared, and an install brings a lost guard back",
  async () => {
    const { mac } = macWith("agent");
    await using _ = mac;
    const nix = (command: string, more = "") =>
      fixture(mac, "lima-2.2-agent").replace(AGENT, "org.nix-community.home.lima").replace(
        /<array>[^]*<\/array>/,
        `<array><string>/bin/sh</string><string>-c</string><string>/bin/wait4path /nix/store &amp;&amp; ${command}</string></array>${more}`,
      );
    mac.lose("gui/501", AGENT);
    Deno.removeSync(`${mac.agents}/${AGENT}.plist`);
    const put = (text: string) => mac.write(`${mac.agents}/org.nix-community.home.lima.plist`, text, ZOE);
    put(nix(`exec ${mac.root}/opt/homebrew/bin/limactl start default --foreground`));
    const refused = await mac.run(["--yes", "default"], { as: ZOE });
    const [, typed = "", declared = "", seconds = ""] =
      /\(hint: (install -d .*); then declare there: (exec .*), ExitTimeOut = (\d+)\)/.exec(refused.stdout) ?? [];
    assert.notEqual(declared, "", refused.stdout);
    assert.equal((await mac.type(typed, ZOE)).code, 0, typed);
    const file = put(nix(declared, `<key>ExitTimeOut</key><integer>${seconds}</integer>`));
    mac.load("gui/501", file);
    const check = () => mac.run(["--check", "--json", "default"], { as: ZOE });
    const checked = await check();
    assert.deepEqual([checked.status, checked.json().state], [0, "guarded"], checked.stdout);
    const guard = `${mac.home}/.local/libexec/lima-guard`;
    Deno.removeSync(guard);
    const lost = await check();
    assert.equal(lost.json().blockers[0].hint, "lima-guard --install default", lost.stdout);
    const again = await mac.run(["--yes", "default"], { as: ZOE });
    assert.equal(again.status, 0, again.stdout);
    assert.equal((await check()).status, 0);
    const out = await mac.run(["--uninstall", "--yes", "default"], { as: ZOE });
    assert.match(out.stdout, /Nix made it \(hint: declare there: exec \S+limactl start default --foreground\)/);
  },
);

macTest("a limactl that has moved: --check and --install say what writes the new place into the plist", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const [from, to] = [`${mac.root}/opt/homebrew/bin/limactl`, `${mac.system}/usr/local/bin/limactl`];
  mac.folder(`${mac.system}/usr/local/bin`);
  Deno.renameSync(from, to);
  for (const role of ["--check", "--install"]) {
    const run = await mac.run([role, "--yes", "--json", "default"]);
    assert.equal(run.json().blockers[0].hint, `${to} autostart enable default --condition=boot`, run.stdout);
  }
});

macTest("the hint for a plist that cannot be read names the file", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  for (
    const [broken, hint] of [
      [text.replace("</dict>\n</plist>", "<key>X</key>\n</dict>\n</plist>"), `plutil -lint ${file}`],
      [text.replace(/<array>[^]*<\/array>/, "<string>limactl</string>"), `plutil -p ${file}`],
    ] as const
  ) {
    mac.daemon("default", broken);
    const run = await mac.run(["--check", "--json", "default"]);
    assert.deepEqual([run.status, run.json().blockers[0].hint], [1, hint], run.stdout);
  }
});

// A person, a Mac as it is broken, and what that person asks for; the command that is printed is typed by that person.
interface Hinted {
  readonly what: string;
  readonly kind: "daemon" | "agent";
  readonly as: Person;
  readonly args: string[];
  readonly spoil?: (mac: FakeMac, file: string) => void | Promise<unknown>;
  /** Where in the answer the command is, if it is not the hint of the first blocker. */
  readonly find?: RegExp;
  readonly typed: RegExp;
}
const installed = (mac: FakeMac, as: Person, ...more: string[]) => mac.run(["--yes", ...more, "default"], { as });
const HINTS: Hinted[] = [
  { what: "a bare daemon", kind: "daemon", as: ADA, args: ["--check"], typed: /^sudo lima-guard --install default$/ },
  { what: "a bare daemon", kind: "daemon", as: ROOT, args: ["--check"], typed: /^lima-guard --install default$/ },
  { what: "a bare agent", kind: "agent", as: ZOE, args: ["--check"], typed: /^lima-guard --install default$/ },
  {
    what: "a daemon with options of the command line",
    kind: "daemon",
    as: ADA,
    args: ["--check", "--lima-home", "HOME/.lima", "--exit-timeout", "45", "--plist", "FILE"],
    typed: /^sudo lima-guard --install --plist \S+ --exit-timeout 45 --lima-home \S+ default$/,
  },
  {
    what: "a job that is not loaded",
    kind: "agent",
    as: ZOE,
    args: ["--yes"],
    spoil: (mac) => mac.lose("gui/501", AGENT),
    find: /\(((?:sudo )?lima-guard --install --start \S+) loads it now\)/,
    typed: /--start/,
  },
  {
    what: "a disabled job",
    kind: "daemon",
    as: ROOT,
    args: ["--yes"],
    spoil: (mac) => {
      mac.launchctl(["disable", `system/${DAEMON}`]);
      mac.lose("system", DAEMON);
    },
    find: /\((lima-guard --install --start \S+) enables and loads it\)/,
    typed: /--start/,
  },
  {
    what: "a job that is ending",
    kind: "daemon",
    as: ROOT,
    args: ["--check"],
    spoil: async (mac) => {
      await installed(mac, ROOT);
      mac.conf("dying=20");
      mac.launchctl(["bootout", `system/${DAEMON}`]);
    },
    typed: /^lima-guard --install --start default$/,
  },
  {
    what: "a RunAtLoad that was taken out",
    kind: "daemon",
    as: ROOT,
    args: ["--check"],
    spoil: async (mac, file) => {
      await installed(mac, ROOT);
      edited(mac, file, "<true/>", "<false/>");
    },
    typed: /^lima-guard --install default$/,
  },
  {
    what: "an instance that is gone",
    kind: "daemon",
    as: ADA,
    args: ["--check"],
    spoil: async (mac) => {
      await installed(mac, ROOT);
      Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    },
    typed: /^sudo lima-guard --uninstall default$/,
  },
  {
    what: "a daemon that only its user may ask",
    kind: "daemon",
    as: ADA,
    args: ["--check"],
    spoil: async (mac) => {
      await installed(mac, ROOT);
      Deno.removeSync(`${mac.state}/alive/${mac.job("system", DAEMON)!.pid}`);
    },
    typed: /^sudo -H -u zoe lima-guard --check default$/,
  },
  {
    what: "a job that is loaded twice",
    kind: "agent",
    as: ZOE,
    args: ["--check"],
    spoil: async (mac, file) => {
      await installed(mac, ZOE);
      mac.launchctl(["bootstrap", "user/501", file], ZOE);
    },
    typed: /^launchctl bootout user\/501\//,
  },
  {
    what: "a job that launchd could not start",
    kind: "daemon",
    as: ADA,
    args: ["--check"],
    spoil: async (mac) => {
      await installed(mac, ROOT);
      const { pid } = mac.job("system", DAEMON)!;
      mac.write(`${mac.state}/exit/${pid}`, "78");
      Deno.removeSync(`${mac.state}/alive/${pid}`);
    },
    find: /hint: (sudo launchctl kickstart system\/\S+), once that is solved\)/,
    typed: /^sudo launchctl/,
  },
  {
    what: "a job whose file is gone",
    kind: "daemon",
    as: ADA,
    args: ["--check"],
    spoil: (_, file) => Deno.removeSync(file),
    find: /its plist is gone \(hint: ([^)]*)\)/,
    typed: /^sudo -H -u zoe lima-guard --stop --lima-home \S+\/\.lima default && sudo launchctl bootout system\//,
  },
  {
    what: "a guarded job whose file is gone",
    kind: "agent",
    as: ZOE,
    args: ["--check"],
    spoil: async (mac, file) => {
      await installed(mac, ZOE);
      Deno.removeSync(file);
    },
    find: /its plist is gone \(hint: ([^)]*)\)/,
    typed: /^launchctl bootout gui/,
  },
  {
    what: "a job that is loaded twice and bare",
    kind: "agent",
    as: ZOE,
    args: ["--check"],
    spoil: (mac, file) => mac.launchctl(["bootstrap", "user/501", file], ZOE),
    typed: /^lima-guard --stop --lima-home \S+\/\.lima default && launchctl bootout user\/501\//,
  },
  {
    what: "a lima-guard of --guard that is gone",
    kind: "daemon",
    as: ROOT,
    args: ["--yes"],
    spoil: async (mac) => {
      const guard = mac.putGuard(`${mac.root}/opt/own/lima-guard`);
      await installed(mac, ROOT, "--guard", guard);
      Deno.removeSync(guard);
    },
    typed: /^lima-guard --install --guard-dir \S+ default$/,
  },
  {
    what: "an install that was rolled back",
    kind: "daemon",
    as: ROOT,
    args: ["--yes", "--exit-timeout", "45"],
    spoil: (mac) => mac.fault("plutil:1 1"),
    find: /hint: (lima-guard --install --exit-timeout 45 default), once that is solved/,
    typed: /45/,
  },
];
for (const { what, kind, as, args, spoil, find, typed } of HINTS) {
  macTest(`the hint for ${what}, as ${as.name} types it, changes the answer, and nothing of another home`, async () => {
    const { mac, file } = macWith(kind);
    await using _ = mac;
    // A second home with the same names: sudo keeps HOME, and nothing may be looked for there.
    const theirs = `${mac.root}/home/eve/Library/LaunchAgents/${AGENT}.plist`;
    mac.write(theirs, fixture(mac, "lima-2.2-agent").replaceAll(mac.home, `${mac.root}/home/eve`), EVE);
    mac.forget();
    await spoil?.(mac, file);
    const words = [...args.map((a) => a.replace("HOME", mac.home).replace("FILE", file)), "default"];
    const first = await mac.run(words, { as });
    const hint = find ? find.exec(first.stdout)?.[1] : /\(hint: ([^)]*)\)/.exec(first.stdout)?.[1];
    assert.ok(hint !== undefined && typed.test(hint), first.stdout);
    mac.forget();
    const run = await mac.type(hint, as);
    assert.equal(run.code, 0, `${hint}\n${run.output}`);
    // What only another person may ask is answered to that one.
    const job = mac.job(kind === "daemon" ? "system" : "gui/501", kind === "daemon" ? DAEMON : AGENT);
    if (hint.includes("--start")) assert.ok(job?.pid !== undefined, "it does not run");
    if (hint.includes("--check")) return assert.match(run.output, /^default: guarded/m);
    let again = "";
    // launchd takes a while to forget a job.
    for (let n = 0; n < 4 && (again === "" || again.includes(hint)); n++) {
      again = (await mac.run(words.map((w) => w === "--yes" ? "--dry-run" : w), { as })).stdout;
    }
    assert.notEqual(again, first.stdout);
    assert.ok(!again.includes(hint), again);
    assert.ok(!Deno.readTextFileSync(theirs).includes("--run"));
  });
}

macTest("--check names the version that runs, the one in place and this one; --restart leaves one", async () => {
  const { mac } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  const dir = `${mac.home}/.lima/default`;
  const line = (version: string, event = "start") =>
    `${JSON.stringify({ time: "2026-01-01T00:00:00Z", boot: "1", dir, role: "run", event, version })}\n`;
  mac.write(`${dir}/lima-guard.jsonl`, `torn\n${line("0.0.7")}${line("0.0.8")}${line("9", "end")}`, ZOE, 0o600);
  for (const as of [ROOT, ZOE]) {
    mac.forget();
    const old = await mac.run(["--check", "--json", "default"], { as });
    assert.equal(old.status, 0, old.stdout);
    assert.deepEqual([old.json().guard.running, old.json().guard.version], ["0.0.8", VERSION]);
    const sudo = as === ROOT ? "" : "sudo ";
    const said =
      `version 0.0.8 is running, and ${mac.guard} is version ${VERSION}: ${sudo}lima-guard --install --restart`;
    assert.ok(old.stdout.includes(said), old.stdout);
    assert.ok(mac.log().some((l) => l.startsWith("501: tail ")) && !mac.log().some((l) => l.startsWith("0: tail ")));
  }
  assert.equal((await mac.run(["--check", "--json", "default"], { as: ADA })).json().guard.running, null);
  mac.write(`${dir}/lima-guard.jsonl`, line(VERSION), ZOE);
  const one = await mac.run(["--check", "--json", "default"]);
  assert.equal(one.json().guard.running, VERSION);
  assert.doesNotMatch(one.stdout, /is running, and/);
  Deno.removeSync(`${mac.state}/alive/${mac.job("system", DAEMON)!.pid}`);
  assert.equal((await mac.run(["--check", "--json", "default"])).json().guard.running, null, "nothing runs");
});

/** What may happen around an install while it is at work: the machine changes, the disk is full, a look fails. */

import assert from "node:assert/strict";
import { BESIDE_SUFFIX, installMain, realHost } from "../install.ts";
import { FakeMac, listed, macWith, own, PLISTS } from "./helpers/launchd.ts";

/** A run on this Mac with some of its host replaced. */
async function runWith(
  mac: FakeMac,
  args: string[],
  change: (host: Awaited<ReturnType<FakeMac["host"]>>) => Partial<Awaited<ReturnType<FakeMac["host"]>>>,
) {
  const out = { stdout: "", stderr: "" };
  const host = await mac.host(out);
  const status = await installMain(args, { ...host, ...change(host) });
  return { status, ...out };
}

/** The job's process ends, KeepAlive starts another one, and somebody has looked at it since. */
async function restart(mac: FakeMac, domain: string, label: string): Promise<void> {
  Deno.removeSync(`${mac.state}/alive/${mac.job(domain, label)!.pid}`);
  for (let n = 0; n < 2; n++) {
    await new Deno.Command(`${mac.root}/bin/launchctl`, { args: ["print", `${domain}/${label}`], env: mac.env })
      .output();
  }
}

// ── the job changes ──

Deno.test("whatever changes in a plist, the job is loaded again: launchd reads it only then", async () => {
  const { mac, job } = await macWith("daemon");
  await using _ = mac;
  await mac.run(["--yes", "default"]);
  assert.equal((await mac.run(["--yes", "--exit-timeout", "45", "default"])).status, 0);
  assert.equal(job()!.timeout, 45);
  mac.forget();
  assert.equal((await mac.run(["--yes", "--exit-timeout", "45", "--keep-alive", "default"])).status, 0);
  assert.ok(mac.log().some((line) => line.includes("bootstrap")), mac.log().join("\n"));
  mac.forget();
  assert.equal((await mac.run(["--yes", "--exit-timeout", "45", "default"])).status, 0);
  assert.ok(!mac.log().some((line) => line.includes("bootstrap")), "a second time there is nothing to do");
});

for (const fault of ["", "stop:1 hang"]) {
  const words = fault === "" ? "" : ", though its ladder hangs";
  Deno.test(`a job that was started anew while the question was open is not cut off${words}`, async () => {
    const { mac, domain, label, file, text } = await macWith(
      "agent",
      { canAsk: true },
      "lima-2.3-agent-keep-alive-lima-home",
    );
    await using _ = mac;
    const run = await runWith(mac, [...own(mac), "default"], () => ({
      confirm: async () => {
        await restart(mac, domain, label);
        if (fault !== "") mac.fault(fault);
        return true;
      },
    }));
    assert.equal(run.status, fault === "" ? 0 : 1, run.stdout + run.stderr);
    assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
    assert.equal(mac.job(domain, label)!.args.includes("--run"), fault === "");
    if (fault !== "") assert.equal(Deno.readTextFileSync(file), text);
  });
}

Deno.test("a job that was started anew while the files were written is not cut off", async () => {
  const { mac, domain, label } = await macWith("agent", {}, "lima-2.3-agent-keep-alive-lima-home");
  await using _ = mac;
  const run = await runWith(mac, ["--yes", ...own(mac), "default"], (host) => ({
    run: async (argv, options) => {
      const answer = await host.run(argv, options);
      if (argv[0] === "plutil") {
        await restart(mac, domain, label);
        mac.fault("stop:1 hang");
      }
      return answer;
    },
  }));
  assert.equal(run.status, 1, run.stdout);
  assert.ok(!mac.exists(`${mac.state}/cut_off`), "the guest was cut off");
  assert.ok(!mac.job(domain, label)!.args.includes("--run"));
});

Deno.test("a job that was not running when the question was asked, and is now, is left alone", async () => {
  const { mac, domain, label, job, file, text } = await macWith("agent", { canAsk: true });
  await using _ = mac;
  Deno.removeSync(`${mac.state}/alive/${job()!.pid}`);
  const run = await runWith(mac, [...own(mac), "default"], () => ({
    confirm: async () => {
      const args = ["kickstart", `${domain}/${label}`];
      await new Deno.Command(`${mac.root}/bin/launchctl`, { args, env: mac.env }).output();
      return true;
    },
  }));
  assert.ok(job()!.pid !== undefined, "the stand-in has started it");
  assert.equal(run.status, 75, run.stdout);
  assert.match(run.stdout, /has changed in the meantime/);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.ok(!job()!.args.includes("--run"));
});

// ── the disk ──

for (
  const [what, error] of [["is full", "No space left on device (os error 28)"], [
    "cannot be written",
    "Read-only file system (os error 30)",
  ]] as const
) {
  Deno.test(`a disk that ${what}, at any file: the old plist and the old job stay, and nothing is left lying about`, async () => {
    for (let at = 1;; at++) {
      const { mac, file, text, job } = await macWith("agent");
      await using _ = mac;
      const before = job();
      let n = 0;
      const run = await runWith(mac, ["--yes", ...own(mac), "default"], (host) => ({
        writeNew: (path, bytes, mode, gid) => {
          if (++n !== at) return host.writeNew(path, bytes, mode, gid);
          if (what === "is full") Deno.writeFileSync(path, bytes.subarray(0, 100));
          throw new Error(error);
        },
      }));
      if (n < at) return assert.ok(at > 3, `only ${at} files`);
      assert.equal(run.status, 1, `file ${at}`);
      assert.ok(run.stdout.includes(error), run.stdout);
      assert.match(run.stdout, /rolled back/);
      assert.equal(Deno.readTextFileSync(file), text);
      assert.deepEqual(job(), before);
      const left = [mac.agents, `${mac.home}/libexec`].filter((d) => mac.exists(d)).flatMap(listed);
      assert.ok(!left.some((name) => name.endsWith(BESIDE_SUFFIX)), left.join(" "));
    }
  });
}

Deno.test("one job that cannot be looked at is reported, and the others are served", async () => {
  const { mac, text } = await macWith("daemon");
  await using _ = mac;
  mac.daemon("k3s", text.replaceAll("default", "k3s"));
  const run = await runWith(mac, ["--yes", "--json", "default", "k3s"], (host) => ({
    bytes: (path, most) => {
      if (path.endsWith(".k3s.plist")) throw new Error("Input/output error (os error 5)");
      return host.bytes(path, most);
    },
  }));
  const { instances } = JSON.parse(run.stdout);
  assert.deepEqual(instances.map((i: { name: string; state: string }) => [i.name, i.state]), [
    ["default", "guarded"],
    ["k3s", "unknown"],
  ]);
  assert.match(instances[1].blockers[0].because, /Input\/output error/);
  assert.equal(run.status, 1);
});

Deno.test("--all does not take a folder that cannot be read for one without jobs", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  const run = await runWith(mac, ["--check", "--all"], (host) => ({
    list: (dir) => dir === mac.daemons ? { trouble: "denied", why: "Permission denied" } : host.list(dir),
  }));
  assert.equal(run.status, 77, run.stdout);
  assert.match(run.stderr, /Cannot list .*LaunchDaemons: Permission denied/);
});

// ── the guard ──

for (const kind of ["daemon", "agent"] as const) {
  Deno.test(`${kind}: a guard that does not run never takes the place of one that does`, async () => {
    const { mac, file, text } = await macWith(kind);
    await using _ = mac;
    const place = kind === "daemon" ? mac.guard : mac.putGuard(`${mac.home}/libexec/lima-guard`);
    mac.putGuard(place, "\n# the old one\n");
    Deno.writeTextFileSync(`${mac.root}/src/lima-guard`, "#!/usr/bin/false\n");
    const run = await mac.run(["--yes", ...kind === "daemon" ? [] : own(mac), "default"]);
    assert.equal(run.status, 1, run.stdout);
    assert.match(run.stdout, /did not say its version/);
    assert.ok(Deno.readTextFileSync(place).endsWith("# the old one\n"), "other jobs may run it");
    assert.deepEqual(listed(place.replace(/\/[^/]*$/, "")), ["lima-guard"]);
    assert.equal(Deno.readTextFileSync(file), text);
  });
}

Deno.test("a daemon's failed install leaves nothing beside the plist, though root has written it", async () => {
  const { mac, file } = await macWith("daemon");
  await using _ = mac;
  mac.fault("plutil:1 1");
  assert.equal((await mac.run(["--yes", "default"])).status, 1);
  assert.deepEqual(listed(mac.daemons).filter((name) => name.endsWith(BESIDE_SUFFIX)), []);
  assert.ok(mac.exists(file));
});

Deno.test("the way to the guard is judged again right before a job is told to run it", async () => {
  const { mac, file, text, job } = await macWith("daemon", { canAsk: true });
  await using _ = mac;
  const guard = mac.putGuard(`${mac.root}/system/opt/lima-guard`);
  const run = await runWith(mac, ["--guard", guard, "default"], () => ({
    confirm: () => {
      mac.settings.owners = [{ prefix: `${mac.root}/system/opt`, uid: 502 }];
      return Promise.resolve(true);
    },
  }));
  assert.equal(run.status, 1, run.stdout);
  assert.match(run.stdout, /belongs to user 502/);
  assert.equal(Deno.readTextFileSync(file), text);
  assert.ok(!job()!.args.includes("--run"));
});

Deno.test("no guard is put into a folder where everybody can make files: somebody may have it open", async () => {
  const { mac } = await macWith("daemon");
  await using _ = mac;
  Deno.mkdirSync(`${mac.root}/system/tmp`);
  mac.settings.owners = [{ prefix: `${mac.root}/system/tmp`, uid: 0, mode: 0o1777 }];
  for (const dir of ["tmp", "tmp/deeper"]) {
    const run = await mac.run(["--yes", "--guard-dir", `${mac.root}/system/${dir}`, "default"]);
    assert.equal(run.status, 1, run.stdout);
    assert.match(run.stdout, /everybody can make files in .*\/tmp/);
  }
  assert.ok(!mac.log().some((line) => /tee|mkdir/.test(line)));
});

Deno.test("from source, without a compiled guard, a dry run shows its plan and says what would be compiled", async () => {
  const { mac } = await macWith("daemon", { isBinary: false });
  await using _ = mac;
  const run = await mac.run(["--dry-run", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.match(run.stdout, /^\+\s*<string>--run<\/string>$/m);
  assert.match(run.stdout, /note: .*compiled.*lima-guard-aarch64-apple-darwin/);
  assert.match(run.stdout, /would sudo .*mv -f .*lima-guard/);
  assert.ok(!mac.log().some((line) => /codesign|tee/.test(line)), mac.log().join("\n"));
});

Deno.test("what root has written for us is on the disk before it gets its name", async () => {
  const { mac, file } = await macWith("daemon");
  await using _ = mac;
  const told: string[] = [];
  const run = await runWith(mac, ["--yes", "default"], (host) => ({
    sync: (path) => {
      told.push(`sync ${path}`);
      host.sync(path);
    },
    run: (argv, options) => {
      if (argv.includes("mv")) told.push(`mv ${argv.at(-1)}`);
      return host.run(argv, options);
    },
  }));
  assert.equal(run.status, 0, run.stdout);
  for (const path of [file, mac.guard]) {
    const [synced, moved] = [told.indexOf(`sync ${path}${BESIDE_SUFFIX}`), told.indexOf(`mv ${path}`)];
    assert.ok(synced >= 0 && synced < moved, told.join("\n"));
  }
});

Deno.test("the guard's 90 MB are read once for many jobs", async () => {
  const { mac, text } = await macWith("daemon");
  await using _ = mac;
  for (const name of ["a", "b", "c"]) await mac.load("system", mac.daemon(name, text.replaceAll("default", name)));
  let reads = 0;
  const run = await runWith(mac, ["--yes", "--all"], (host) => ({
    bytes: (path, most) => {
      if (path === `${mac.root}/src/lima-guard`) reads++;
      return host.bytes(path, most);
    },
  }));
  assert.equal(run.status, 0, run.stdout);
  assert.equal(run.stdout.match(/: guarded: /g)?.length, 4);
  assert.equal(reads, 1);
});

Deno.test("another user's command does not start in a folder that he may not be in", async () => {
  const bin = Deno.realPathSync(Deno.makeTempDirSync());
  try {
    Deno.writeTextFileSync(`${bin}/sudo`, "#!/bin/sh\npwd\n");
    Deno.chmodSync(`${bin}/sudo`, 0o755);
    const host = await realHost({ canAsk: false, isVerbose: false, env: { PATH: `${bin}:${Deno.env.get("PATH")}` } });
    assert.equal((await host.run(["sudo", "-n", "true"], { limitMs: 10_000 })).stdout, "/\n");
  } finally {
    Deno.removeSync(bin, { recursive: true });
  }
});

// ── what else there was ──

Deno.test("a disabled override of a job that is loaded comes back with it", async () => {
  const { mac, domain, label, job } = await macWith("daemon");
  await using _ = mac;
  Deno.writeTextFileSync(`${mac.state}/disabled/${domain},${label}`, "");
  mac.fault("bootstrap:1 122");
  assert.equal((await mac.run(["--yes", "default"])).status, 1);
  assert.ok(job() && !job()!.args.includes("--run"));
  assert.ok(mac.isDisabled(domain, label), "it was disabled before");
});

Deno.test("--check is 75 when it cannot be told whether the job is disabled", async () => {
  for (const fault of ["print-disabled:1 hang", "print-disabled:1 5"]) {
    const { mac } = await macWith("daemon");
    await using _ = mac;
    assert.equal((await mac.run(["--yes", "default"])).status, 0);
    mac.forget();
    mac.fault(fault);
    const run = await mac.run(["--check", "default"]);
    assert.equal(run.status, 75, run.stdout);
    assert.match(run.stdout, /print-disabled/);
  }
});

for (const kind of ["daemon", "agent"] as const) {
  Deno.test(`off a Mac the ${kind}'s user is the one of the plist, and nothing else is written into it`, async () => {
    await using mac = FakeMac.make({ os: "linux" });
    const file = `${mac.home}/any.plist`;
    const text = Deno.readTextFileSync(new URL(`lima-2.2-${kind}.plist`, PLISTS));
    Deno.writeTextFileSync(file, text);
    const run = await mac.run(["--yes", "--no-reload", "--json", "--plist", file, "default"]);
    assert.equal(run.status, 0, run.stdout);
    assert.deepEqual(run.json().changes.map((c: { key: string }) => c.key), ["ProgramArguments", "ExitTimeOut"]);
    assert.equal(/login agent|Local Network/.test(run.stdout), kind === "agent");
    assert.equal((await mac.run(["--uninstall", "--yes", "--no-reload", "--plist", file, "default"])).status, 0);
    assert.equal(Deno.readTextFileSync(file), text);
  });
}

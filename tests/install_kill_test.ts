/** install.ts is killed before each of its effects: the plist is there, old or new in full, and the next run finishes. */

import assert from "node:assert/strict";
import { FakeMac } from "./helpers/launchd.ts";
import { project } from "./helpers/paths.ts";
import { within } from "./helpers/processes.ts";

const folder = new URL("testdata/plists/", import.meta.url);
const SIDE_BY_SIDE = 2;

interface World {
  readonly mac: FakeMac;
  readonly file: string;
  readonly oldText: string;
  readonly place: string[];
  readonly job: () => ReturnType<FakeMac["job"]>;
}

async function worldOf(kind: "daemon" | "agent"): Promise<World> {
  const mac = FakeMac.make();
  const oldText = Deno.readTextFileSync(new URL(`lima-2.2-${kind}.plist`, folder)).replaceAll("/Users/zoe", mac.home);
  const file = kind === "daemon" ? mac.daemon("default", oldText) : mac.agent("default", oldText);
  const domain = kind === "daemon" ? "system" : "gui/501";
  const label = kind === "daemon" ? "io.lima-vm.daemon.default" : "io.lima-vm.autostart.default";
  await mac.load(domain, file);
  // A plist with a text of its own shows that the backup is this one, and not a wrapped one.
  const place = kind === "daemon"
    ? ["--guard", mac.putGuard(`${mac.root}/system/opt/lima-guard`)]
    : ["--guard-dir", `${mac.home}/libexec`];
  return { mac, file, oldText, place, job: () => mac.job(domain, label) };
}

/** Kills a run before its n-th effect. False: it has fewer of them. */
async function killedAt(n: number, { mac }: World, args: string[]): Promise<boolean> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", "--no-check", ...packageFlags(), `${project}/tests/standin/launchd/install_here.ts`, ...args],
    env: { MAC_ROOT: mac.root, MAC_SETTINGS: JSON.stringify({ freezeAt: n }) },
    stdin: "null",
    stdout: "null",
    stderr: "piped",
  }).spawn();
  let said = "";
  for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) {
    said += chunk;
    if (!said.includes("frozen\n")) continue;
    child.kill("SIGKILL");
    break;
  }
  const { code, signal } = await within(child.status, 30_000, () => `the run has not ended: ${said}`);
  if (signal === null) assert.equal(code, 0, said);
  return signal === "SIGKILL";
}

/** As the tests themselves find their packages. */
function packageFlags(): string[] {
  const where = import.meta.resolve("jsr:@std/cli@1.0.29/parse-args");
  return where.startsWith("file:") ? ["--no-lock", "--import-map", `${project}/tools/npm_only/import_map.json`] : [];
}

for (const kind of ["agent", "daemon"] as const) {
  for (const role of ["install", "uninstall"] as const) {
    Deno.test(`${kind}: --${role} killed at any moment leaves a whole plist, and the next run finishes`, async () => {
      let [next, last] = [1, Infinity];
      const tryAt = async (n: number) => {
        const world = await worldOf(kind);
        await using _ = world.mac;
        const { mac, file, oldText, place, job } = world;
        const install = ["--yes", ...place, "default"];
        const uninstall = ["--uninstall", "--yes", "default"];
        const whole = await wrappedText(world, role === "uninstall");
        if (!await killedAt(n, world, role === "install" ? install : uninstall)) return void (last = Math.min(last, n));
        const left = Deno.readTextFileSync(file);
        assert.ok(left === oldText || left === whole(), `effect ${n}: neither old nor new:\n${left}`);
        const again = await mac.run(role === "install" ? install : uninstall);
        assert.equal(again.status, 0, `effect ${n}: ${again.stdout}${again.stderr}`);
        const loaded = job();
        assert.ok(loaded?.pid !== undefined, `effect ${n}: the job does not run: ${again.stdout}`);
        assert.equal(loaded.args.includes("--run"), role === "install", `effect ${n}`);
        if (role === "install") assert.equal((await mac.run(uninstall)).status, 0);
        assert.equal(Deno.readTextFileSync(file), oldText, `effect ${n}: the old bytes`);
        const dir = file.replace(/\/[^/]*$/, "");
        assert.deepEqual(
          [...Deno.readDirSync(dir)].map((e) => e.name),
          [file.slice(dir.length + 1)],
          `effect ${n}: leftovers`,
        );
      };
      const worker = async () => {
        while (next < last) await tryAt(next++);
      };
      await Promise.all(Array.from({ length: SIDE_BY_SIDE }, worker));
      assert.ok(last > 12 && last < 200, `it has ${last} effects`);
    });
  }
}

/** The wrapped plist's text; for an uninstall the world is installed first. */
async function wrappedText({ mac, file, place }: World, forUninstall: boolean): Promise<() => string> {
  if (forUninstall) {
    assert.equal((await mac.run(["--yes", ...place, "default"])).status, 0);
    mac.forget();
    const text = Deno.readTextFileSync(file);
    return () => text;
  }
  const guard = place[0] === "--guard" ? place[1] : `${place[1]}/lima-guard`;
  const dry = Deno.readTextFileSync(file)
    .replace(
      "\t<array>\n",
      `\t<array>\n${[guard, "--run", "default", "--"].map((a) => `\t\t<string>${a}</string>\n`).join("")}`,
    )
    .replace("\t</array>\n", "\t</array>\n\t<key>ExitTimeOut</key>\n\t<integer>60</integer>\n");
  return () => dry;
}

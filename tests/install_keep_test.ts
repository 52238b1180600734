/**
 * What no install, uninstall or purge takes away: the job of an instance that is there, what another program has written
 * meanwhile, a lima-guard that no install has placed, the only copy of a file, and the state that launchd had before.
 */

import assert from "node:assert/strict";
import { guarded, limactl, listed, macTest, macWith, ZOE } from "./install_mac.ts";

const QUICK = { quick: true };

// ── the instance of a job ──

/** The same plist with these variables; its WorkingDirectory says nothing. */
function withVariables(text: string, variables: Record<string, string>): string {
  const entries = Object.entries(variables).map(([key, value]) => `<key>${key}</key><string>${value}</string>`);
  const environment = `<key>EnvironmentVariables</key>\n\t<dict>${entries.join("")}</dict>\n\t`;
  return text.replace(/\s*<key>WorkingDirectory<\/key>\s*<string>[^<]*<\/string>/, "")
    .replace("<key>RunAtLoad", `${entries.length > 0 ? environment : ""}<key>RunAtLoad`);
}

/** A wrapped plist with more options of lima-guard's own. */
function withWords(file: string, words: readonly string[]): void {
  const strings = words.map((word) => `\n\t\t<string>${word}</string>`).join("");
  const text = Deno.readTextFileSync(file);
  Deno.writeTextFileSync(file, text.replace(/(<string>default<\/string>)(\s*<string>--<\/string>)/, `$1${strings}$2`));
  assert.ok(Deno.readTextFileSync(file).includes(strings));
}

// How a wrapped job says where its instance is: the words, the variables, and the home below zoe's.
const HOMES: [words: string[], variables: Record<string, string>, home: string][] = [
  [["--lima-home", "HOME/data/lima"], {}, "data/lima"],
  [["--lima-home=HOME/data/lima"], {}, "data/lima"],
  [["--lima-home", "~/data/lima"], {}, "data/lima"],
  [["--lima-home=~/data/lima"], {}, "data/lima"],
  [["--lima-home", "~/lima"], { HOME: "HOME/data" }, "data/lima"],
  [["--lima-home", "HOME/data/lima"], { LIMA_HOME: "HOME/.lima" }, "data/lima"],
  [[], { HOME: "HOME/data" }, "data/.lima"],
];
for (const [words, variables, limaHome] of HOMES) {
  const shown = [...words, ...Object.entries(variables).map((entry) => entry.join("="))].join(" ");
  macTest(
    `a job with ${shown} has its instance there, not in ~/.lima: it is checked, installed and unwrapped`,
    async () => {
      const { mac, file, text: whole, job } = macWith("daemon", QUICK);
      await using _ = mac;
      const inHome = (value: string) => value.replace("HOME", mac.home);
      const own = Object.fromEntries(Object.entries(variables).map(([key, value]) => [key, inHome(value)]));
      const text = withVariables(whole, own);
      mac.write(file, text);
      mac.folder(`${mac.home}/data`, ZOE);
      mac.instance("default", `${mac.home}/${limaHome}`);
      assert.equal((await mac.run(["--yes", "default"])).status, 0);
      Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
      withWords(file, words.map(inHome));
      const installed = await mac.run(["--yes", "--json", "default"]);
      assert.deepEqual([installed.status, installed.json().state], [0, "guarded"], installed.stdout);
      assert.deepEqual(job()!.args, guarded(mac, mac.guard, ...words.map(inHome)));
      const checked = await mac.run(["--check", "--json", "default"]);
      assert.deepEqual([checked.status, checked.json().state], [0, "guarded"], checked.stdout);
      mac.forget();
      const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
      assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout + run.stderr);
      assert.deepEqual([Deno.readTextFileSync(file), job()?.args], [text, limactl(mac)]);
      const stop = mac.log().find((line) => line.includes("--stop"));
      assert.ok(stop?.includes(`--lima-home ${mac.home}/${limaHome} default`), stop);
    },
  );
}

macTest(
  "a Lima home on a volume that is not mounted is no lost instance, also where its folder is made already",
  async () => {
    // macOS mounts them below this folder.
    const isMade = !listed("/").includes("Volumes");
    Deno.mkdirSync("/Volumes", { recursive: true });
    const volume = Deno.makeTempDirSync({ dir: "/Volumes", prefix: "lima-guard-" });
    try {
      Deno.chmodSync(volume, 0o755);
      for (const byLink of [false, true]) {
        const { mac, file, job } = macWith("daemon", QUICK);
        await using _ = mac;
        const limaHome = byLink ? `${mac.home}/.lima` : volume;
        if (byLink) Deno.removeSync(limaHome, { recursive: true });
        if (byLink) Deno.symlinkSync(volume, limaHome);
        mac.settings.devices = [{ prefix: volume, dev: 99 }];
        mac.instance("default", volume);
        assert.equal((await mac.run(["--yes", "--lima-home", limaHome, "default"])).status, 0);
        Deno.removeSync(`${volume}/default`, { recursive: true });
        const onVolume = await mac.run(["--check", "--json", "default"]);
        assert.match(onVolume.json().blockers[0].because, /the instance is gone/, "the volume is there");
        mac.settings.devices = [];
        const stub = await mac.run(["--check", "--json", "default"]);
        assert.deepEqual([stub.status, stub.json().state], [75, "unknown"], stub.stdout);
        assert.match(stub.stdout, /on a volume that is not mounted now/);
        const run = await mac.run(["--uninstall", "--yes", "--json", "default"]);
        assert.deepEqual([run.status, run.json().state], [0, "not guarded"], run.stdout);
        assert.deepEqual([mac.exists(file), job()!.args], [true, limactl(mac)]);
      }
    } finally {
      Deno.removeSync(volume, { recursive: true });
      if (isMade && listed("/Volumes").length === 0) Deno.removeSync("/Volumes");
    }
  },
);

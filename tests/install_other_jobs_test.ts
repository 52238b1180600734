/** Jobs that Lima has not written: what is said of them can be done, and then they are installed; and Colima's home. */

import assert from "node:assert/strict";
import { parse } from "npm:plist@5.0.0";
import { ADA, DAEMON, FakeMac, fixture, guarded, limactl, macTest, macWith, ZOE } from "./install_mac.ts";

interface HomeMade {
  /** The words of ProgramArguments. */
  readonly words: readonly string[];
  readonly environment?: Readonly<Record<string, string>>;
  /** Without one launchd runs it as root. */
  readonly user?: string;
}

/** A plist that a person has written, under a label of his own. */
function homeMade({ words, environment, user }: HomeMade): string {
  const string = (text: string) => `<string>${text.replaceAll("&", "&amp;")}</string>`;
  const entries = Object.entries(environment ?? {}).map(([name, value]) => `<key>${name}</key>${string(value)}`);
  return `<?xml version="1.0" encoding="UTF-8"?>
<plist version="1.0">
<dict>
\t<key>Label</key>
\t<string>my.vm</string>${user === undefined ? "" : `\n\t<key>UserName</key>\n\t${string(user)}`}
\t<key>ProgramArguments</key>
\t<array>${words.map((word) => `\n\t\t${string(word)}`).join("")}
\t</array>${environment ? `\n\t<key>EnvironmentVariables</key>\n\t<dict>${entries.join("")}</dict>` : ""}
\t<key>RunAtLoad</key>
\t<true/>
</dict>
</plist>
`;
}

const put = (mac: FakeMac, job: HomeMade) => mac.write(`${mac.daemons}/my.vm.plist`, homeMade(job));
const asDaemonOfLima = (mac: FakeMac) => {
  Deno.removeSync(`${mac.daemons}/my.vm.plist`);
  mac.daemon("default", fixture(mac, "lima-2.2-daemon"));
};

// What a person has written; what is said; and that it is done, by a new job or by what Lima would write.
interface Followed {
  readonly what: string;
  readonly before: (mac: FakeMac) => HomeMade;
  readonly hint: RegExp;
  readonly follow: ((mac: FakeMac) => HomeMade) | "by Lima";
  readonly name?: string;
}
const FOLLOWED: Followed[] = [
  {
    what: "colima without -f",
    name: "colima",
    before: (mac) => ({ words: [`${mac.root}/opt/homebrew/bin/colima`, "start"], user: "zoe" }),
    hint: /^add -f to its ProgramArguments$/,
    follow: (mac) => ({ words: [`${mac.root}/opt/homebrew/bin/colima`, "start", "-f"], user: "zoe" }),
  },
  {
    what: "limactl behind su",
    before: (mac) => ({ words: ["/usr/bin/su", "-", "zoe", "-c", limactl(mac).join(" ")] }),
    hint: /^UserName in the plist, and limactl itself as the program$/,
    follow: (mac) => ({ words: limactl(mac), user: "zoe" }),
  },
  {
    what: "limactl behind env",
    before: (mac) => ({ words: ["/usr/bin/env", `LIMA_HOME=${mac.home}/.lima`, ...limactl(mac)], user: "zoe" }),
    hint: /^EnvironmentVariables in the plist, and limactl itself as the program$/,
    follow: (mac) => ({ words: limactl(mac), environment: { LIMA_HOME: `${mac.home}/.lima` }, user: "zoe" }),
  },
  {
    what: "limactl behind a shell",
    before: (mac) => ({ words: ["/bin/zsh", "-c", limactl(mac).join(" ")], user: "zoe" }),
    hint: /^let ProgramArguments run limactl itself, without a shell/,
    follow: (mac) => ({ words: limactl(mac), user: "zoe" }),
  },
  {
    what: "a flag that is not known",
    before: (mac) => ({ words: [...limactl(mac), "--brand-new", "7"], user: "zoe" }),
    hint: /^write it with its value in one word: --brand-new=VALUE$/,
    follow: (mac) => ({ words: [...limactl(mac), "--brand-new=7"], user: "zoe" }),
  },
  {
    what: "limactl without --foreground",
    before: (mac) => ({ words: limactl(mac).slice(0, -1), user: "zoe" }),
    hint: /^limactl autostart enable default --condition=boot, then remove this job$/,
    follow: "by Lima",
  },
  {
    what: "two instances in one job",
    before: (mac) => ({ words: [...limactl(mac), "k3s"], user: "zoe" }),
    hint: /^one job for each instance: limactl autostart enable default --condition=boot$/,
    follow: "by Lima",
  },
];
for (const { what, before, hint, follow, name = "default" } of FOLLOWED) {
  macTest(`${what} is refused, and once what is said has been done it is installed`, async () => {
    await using mac = FakeMac.make();
    mac.instance("colima", `${mac.home}/.colima/_lima`);
    mac.own(`${mac.home}/.colima`, ZOE);
    const file = put(mac, before(mac));
    const refused = await mac.run(["--yes", "--json", "--plist", file, name]);
    assert.deepEqual([refused.status, refused.json().state], [1, "refused"], refused.stdout);
    assert.match(refused.json().blockers[0].hint, hint);
    assert.equal(Deno.readTextFileSync(file), homeMade(before(mac)));
    if (follow === "by Lima") asDaemonOfLima(mac);
    else put(mac, follow(mac));
    const run = await mac.run(["--yes", "--start", name]);
    assert.equal(run.status, 0, run.stdout + run.stderr);
    const checked = await mac.run(["--check", "--json", name]);
    assert.deepEqual([checked.status, checked.json().state], [0, "guarded"], checked.stdout);
  });
}

macTest("a wrapped job whose limactl has no --foreground is not green, and no install takes it", async () => {
  const { mac, file, domain, label } = macWith("daemon");
  await using _ = mac;
  assert.equal((await mac.run(["--yes", "default"])).status, 0);
  mac.lose(domain, label);
  mac.write(file, Deno.readTextFileSync(file).replace(/\s*<string>--foreground<\/string>/, ""));
  mac.load(domain, file);
  assert.deepEqual(mac.job(domain, label)!.args, guarded(mac).slice(0, -1));
  for (const role of ["--check", "--install"]) {
    const run = await mac.run([role, "--yes", "--json", "default"]);
    assert.equal(run.status, 1, run.stdout);
    assert.notEqual(run.json().state, "guarded");
    assert.match(run.json().blockers[0].because, /without --foreground launchd does not watch it/);
  }
});

// Colima's own order: the job's environment, the folders that are there, and the LIMA_HOME that is written into the job;
// undefined: none is written. HOME is zoe's.
const HOMES: [what: string, environment: Record<string, string>, there: string[], limaHome: string | undefined][] = [
  ["COLIMA_HOME, where it is there", { COLIMA_HOME: "HOME/own", XDG_CONFIG_HOME: "HOME/xdg" }, [
    "own",
    ".colima",
    "xdg/colima",
    ".config/colima",
  ], "HOME/own/_lima"],
  ["no COLIMA_HOME that is missing", { COLIMA_HOME: "HOME/own" }, [".colima"], "HOME/.colima/_lima"],
  ["no COLIMA_HOME that is empty", { COLIMA_HOME: "" }, [".colima"], "HOME/.colima/_lima"],
  [
    "~/.colima, where it is there, before XDG_CONFIG_HOME",
    { XDG_CONFIG_HOME: "HOME/xdg" },
    [".colima", "xdg/colima", ".config/colima"],
    "HOME/.colima/_lima",
  ],
  [
    "XDG_CONFIG_HOME, also where nothing is there yet",
    { XDG_CONFIG_HOME: "HOME/xdg" },
    [".config/colima"],
    "HOME/xdg/colima/_lima",
  ],
  ["~/.config/colima, where it is there", { XDG_CONFIG_HOME: "" }, [".config/colima"], "HOME/.config/colima/_lima"],
  ["~/.colima, where nothing is there", {}, [], "HOME/.colima/_lima"],
  ["a LIMA_HOME of the job's own", { LIMA_HOME: "HOME/mine" }, [".colima"], "HOME/mine"],
  ["no LIMA_HOME that is empty", { LIMA_HOME: "" }, [".colima"], ""],
];
for (const [what, environment, there, limaHome] of HOMES) {
  macTest(`Colima's home is ${what}`, async () => {
    await using mac = FakeMac.make();
    const at = (path: string) => path.replace("HOME", mac.home);
    for (const folder of there) mac.folder(`${mac.home}/${folder}`, ZOE);
    const given = Object.fromEntries(Object.entries(environment).map(([name, path]) => [name, at(path)]));
    const words = [`${mac.root}/opt/homebrew/bin/colima`, "start", "-f"];
    put(mac, { words, environment: { PATH: "/bin", ...given }, user: "zoe" });
    const run = await mac.run(["--print", "colima"]);
    assert.equal(run.status, 0, run.stderr);
    const { EnvironmentVariables: now } = parse(run.stdout) as { EnvironmentVariables: Record<string, string> };
    assert.equal(now["LIMA_HOME"], limaHome === undefined ? undefined : at(limaHome));
    // Where --check looks for the instance.
    const looked = await mac.run(["--check", "--json", "colima"]);
    const dir = `${limaHome === "" ? `${mac.home}/.colima/_lima` : at(limaHome ?? "")}/colima`;
    assert.ok(looked.stdout.includes(`${dir} is on a volume that is not mounted now`), looked.stdout);
  });
}

macTest("a LIMA_HOME that is empty leaves limactl its default, whatever the working directory is", async () => {
  await using mac = FakeMac.make();
  const environment = "<key>EnvironmentVariables</key><dict><key>LIMA_HOME</key><string></string></dict><key>RunAtLoad";
  const text = fixture(mac, "lima-2.2-daemon").replace("<key>RunAtLoad", environment);
  const file = mac.daemon("default", text.replace(`${mac.home}/.lima/default`, `${mac.home}/elsewhere/default`));
  const run = await mac.run(["--yes", "default"]);
  assert.equal(run.status, 0, run.stdout);
  assert.ok(Deno.readTextFileSync(file).includes("<key>LIMA_HOME</key><string></string></dict>"));
  assert.equal((await mac.run(["--check", "default"])).status, 0);
});

// A working directory with the instance's name, below zoe's home; under whose label; and the LIMA_HOME that is written.
const FOLDERS: [what: string, label: string, instances: string[], limaHome: string | undefined][] = [
  ["Lima's own job of another home", "io.lima-vm.daemon.default", ["src"], "src"],
  ["Lima's own job of another home that is not mounted", "io.lima-vm.daemon.default", [], "src"],
  ["Lima's own job, of an instance in ~/.lima", "io.lima-vm.daemon.default", ["src", ".lima"], undefined],
  ["a person's job in a project with a lima.yaml", "com.acme.vm", ["src", ".lima"], undefined],
  ["a person's job in a project, of an instance that is gone", "com.acme.vm", ["src"], undefined],
];
for (const [what, label, instances, limaHome] of FOLDERS) {
  macTest(`the working directory ${limaHome === undefined ? "says nothing" : "is believed"}: ${what}`, async () => {
    await using mac = FakeMac.make();
    Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    for (const home of instances) mac.instance("default", `${mac.home}/${home}`);
    const text = fixture(mac, "lima-2.2-daemon").replace("io.lima-vm.daemon.default", label)
      .replace(`${mac.home}/.lima/default`, `${mac.home}/src/default`);
    mac.load("system", mac.write(`${mac.daemons}/${label}.plist`, text));
    const looked = await mac.run(["--check", "default"]);
    const isGone = limaHome === undefined && !instances.includes(".lima");
    assert.equal(looked.stdout.includes(`there is no ${mac.home}/.lima/default/lima.yaml`), isGone, looked.stdout);
    if (isGone) return;
    const run = await mac.run(["--yes", "--json", "default"]);
    assert.equal(run.status, 0, run.stdout);
    const added = run.json().changes.find((c: { key: string }) => c.key === "EnvironmentVariables");
    assert.deepEqual(added?.after, limaHome && { LIMA_HOME: `${mac.home}/${limaHome}` });
    const stop = mac.log().find((line) => line.includes("--stop"));
    assert.ok(stop?.includes(`--lima-home ${mac.home}/${limaHome ?? ".lima"} default`), stop);
  });
}

// A variable that `launchctl setenv` has set for the jobs of a login; the home that it leads to; the LIMA_HOME that is written.
const SESSION: [tool: string, variable: string, limaHome: string, written: string | undefined][] = [
  ["limactl", "LIMA_HOME=HOME/data", "data", undefined],
  ["colima", "LIMA_HOME=HOME/data", "data", undefined],
  ["colima", "COLIMA_HOME=HOME/own", "own/_lima", "own/_lima"],
  ["colima", "XDG_CONFIG_HOME=HOME/xdg", "xdg/colima/_lima", "xdg/colima/_lima"],
];
for (const [tool, variable, limaHome, written] of SESSION) {
  macTest(`the instance of ${tool} is where the variable of the login says: ${variable}`, async () => {
    await using mac = FakeMac.make();
    const name = tool === "limactl" ? "default" : "colima";
    // Another instance was once in the tool's own place.
    Deno.removeSync(`${mac.home}/.lima/default`, { recursive: true });
    if (variable.startsWith("COLIMA")) mac.instance("other", `${mac.home}/.colima/_lima`);
    mac.instance(name, `${mac.home}/${limaHome}`);
    const words = tool === "limactl" ? limactl(mac) : [`${mac.root}/opt/homebrew/bin/colima`, "start", "-f"];
    const file = mac.write(`${mac.agents}/my.vm.plist`, homeMade({ words }), ZOE);
    mac.load("gui/501", file);
    mac.conf(`setenv=${variable.replace("HOME/", `${mac.home}/`)}`);
    const bare = await mac.run(["--check", "--json", name], { as: ZOE });
    assert.deepEqual([bare.status, bare.json().blockers[0].hint], [1, `lima-guard --install ${name}`], bare.stdout);
    assert.doesNotMatch(bare.stdout, /is gone|not mounted/);
    const run = await mac.run(["--yes", "--json", name], { as: ZOE });
    assert.deepEqual([run.status, run.json().state], [0, "guarded"], run.stdout);
    const added = run.json().changes.find((c: { key: string }) => c.key === "EnvironmentVariables");
    assert.deepEqual(added?.after, written && { LIMA_HOME: `${mac.home}/${written}` });
    assert.equal((await mac.run(["--check", name], { as: ZOE })).status, 0);
    assert.equal((await mac.run(["--uninstall", "--yes", name], { as: ZOE })).status, 0);
    assert.equal(Deno.readTextFileSync(file), homeMade({ words }));
  });
}

macTest("a COLIMA_HOME that this user may not look at is not written down", async () => {
  await using mac = FakeMac.make();
  mac.folder(`${mac.root}/closed`, undefined, 0o700);
  mac.folder(`${mac.home}/.colima`, ZOE);
  const environment = { COLIMA_HOME: `${mac.root}/closed/colima` };
  const words = [`${mac.root}/opt/homebrew/bin/colima`, "start", "-f"];
  mac.write(`${mac.agents}/my.vm.plist`, homeMade({ words, environment }), ZOE);
  const run = await mac.run(["--print", "colima"], { as: ZOE });
  assert.equal(run.status, 0, run.stderr);
  assert.ok(!run.stdout.includes("<key>LIMA_HOME<"), run.stdout);
});

macTest("of two users' daemons of one name the caller's is checked, and named to root, also in the hint", async () => {
  const { mac, file, text } = macWith("daemon");
  await using _ = mac;
  const home = `${mac.root}/home/ada`;
  const ofAda = text.replaceAll(mac.home, home).replace(">zoe<", ">ada<").replaceAll(DAEMON, "com.ada.default");
  for (const name of [".lima", ".lima/_config", ".lima/default"]) mac.folder(`${home}/${name}`, ADA);
  mac.write(`${home}/.lima/default/lima.yaml`, "", ADA);
  const own = mac.write(`${mac.daemons}/com.ada.default.plist`, ofAda);
  mac.load("system", own);
  const { blockers: [{ hint }] } = (await mac.run(["--check", "--json", "default"], { as: ADA })).json();
  assert.equal(hint, `sudo lima-guard --install --plist ${own} default`);
  const run = await mac.run(["--yes", "--no-reload", "default"], { as: ADA });
  assert.equal(run.status, 0, run.stdout + run.stderr);
  assert.match(Deno.readTextFileSync(own), /--run/);
  assert.equal(Deno.readTextFileSync(file), text);
});

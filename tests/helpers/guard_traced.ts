/** lima_guard.ts under strace, which writes every process it starts to the file GUARD_TRACE. */

const { GUARD_TRACE = "" } = Deno.env.toObject();
const guard = new URL("../../lima_guard.ts", import.meta.url).pathname;
// As this script finds its packages, so does the guard.
const parseArgs = import.meta.resolve("jsr:@std/cli@1.0.29/parse-args");
const map = new URL("../../tools/npm_only/import_map.json", import.meta.url).pathname;
const flags = parseArgs.startsWith("file:") ? ["--no-lock", "--import-map", map] : [];
const strace = ["-f", "-qq", "-e", "trace=execve,execveat,clone,clone3,fork,vfork", "-e", "signal=none"];
const { code } = await new Deno.Command("strace", {
  args: [...strace, "-o", GUARD_TRACE, Deno.execPath(), "run", "-A", ...flags, guard, ...Deno.args],
}).spawn().status;
Deno.exit(code);

/** The real lima-guard, from source, as a program on the pretended Mac of install_mac.ts. */

import { denoFlags } from "./helpers/guard.ts";
import { project } from "./helpers/paths.ts";
import { type FakeMac, sharedFolder } from "./install_mac.ts";

export interface GuardProgram {
  /** To be in the environment of everything that it starts. */
  readonly mark: Readonly<Record<string, string>>;
  /** The lima_guard.ts that is run. */
  readonly source?: string;
  /** What runs install.ts: a path. */
  readonly installer?: string;
}

/** A program that is lima_guard.ts, and whose `--install`, `--check` and `--uninstall` are install.ts on this Mac. */
export function realGuard(mac: FakeMac, program: GuardProgram): string {
  const { mark, source = `${project}/lima_guard.ts`, installer = `${mac.root}/lib/run` } = program;
  const inherited = ["JSR_URL", "NPM_CONFIG_REGISTRY", "DENO_TLS_CA_STORE", "DENO_CERT"].flatMap((name) => {
    const value = Deno.env.get(name);
    return value === undefined ? [] : [[name, value] as const];
  });
  const cache = { DENO_DIR: `${sharedFolder()}/deno-dir`, DENO_NO_UPDATE_CHECK: "1", NO_COLOR: "1" };
  const env = Object.entries({ ...mark, ...cache, ...Object.fromEntries(inherited) });
  const run = [`${mac.deno} run -q -A --no-check`, ...denoFlags(), source].join(" ");
  return `#!/usr/bin/env bash
case " $* " in
  *" --install "* | *" --check "* | *" --uninstall "*) exec ${installer} "$(realpath "$0")" "$@" ;;
esac
exec env ${env.map(([name, value]) => `${name}='${value}'`).join(" ")} ${run} "$@"
`;
}

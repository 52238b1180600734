/** install.ts on a pretended Mac, in a process of its own that can be killed: MAC_ROOT is its folder. */

import { installMain } from "../../../install.ts";
import { FakeMac } from "../../helpers/launchd.ts";

const mac = new FakeMac(Deno.env.get("MAC_ROOT")!, JSON.parse(Deno.env.get("MAC_SETTINGS") ?? "{}"));
const out = { stdout: "", stderr: "" };
const status = await installMain(Deno.args, await mac.host(out));
Deno.stdout.writeSync(new TextEncoder().encode(out.stdout));
Deno.exit(status);

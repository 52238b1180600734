/** Everything that tests with real processes need. */

export * from "./agents.ts";
export * from "./colima.ts";
export * from "./guard.ts";
export * from "./guest.ts";
export * from "./home.ts";
export * from "./paths.ts";
export * from "./processes.ts";
export * from "./user.ts";

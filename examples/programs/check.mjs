// A test in Node with npm's `pg`: it finds the stage by its environment, as `stagegbo run` gives it.
//   npm install --prefix examples/programs
//   stagegbo run -- node --test examples/programs/check.mjs
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import pg from "pg";

const database = new pg.Client({ connectionString: process.env.DATABASE_URL });

before(() => database.connect());
after(() => database.end());

test("production's users are in the database", async () => {
  const { rows } = await database.query("SELECT count(*)::int AS users FROM users");
  assert.ok(rows[0].users > 0);
});

test("it is the stage's database", async () => {
  const { rows } = await database.query("SELECT host(inet_server_addr()) AS host");
  assert.equal(rows[0].host, process.env.DB_HOST);
});

test("what is rolled back stays out of it", async () => {
  await database.query("BEGIN");
  await database.query("CREATE TABLE of_a_test (id int)");
  await database.query("ROLLBACK");
  const { rows } = await database.query("SELECT to_regclass('of_a_test') AS found");
  assert.equal(rows[0].found, null);
});

test("BotServer answers", async () => {
  const answer = await fetch(`${process.env.BOTSERVER_URL}/health`);
  assert.ok([200, 503].includes(answer.status));
});

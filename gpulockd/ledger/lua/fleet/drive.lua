-- drive: takes the right to drive the rollout if nobody has it, or keeps it for another term. Time goes on by what the
-- server's TIME has moved since the last call, but never by more than a third of the driver's term and never backwards:
-- neither a jump of the clock nor an hour in which nobody drove counts as time in which the rollout was watched.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  driver    ARGV[3] term (ms), '0' gives the right back
-- returns  {'rollout', TIME (ms), version, state, driver, elapsed (ms), left of the driver's term (ms)}
local me, term_ms = ARGV[2], tonumber(ARGV[3])
local row = fleet.rollout()
row.pass(server.time_ms(), term_ms)
if row.driver == '' or row.driver == me or row.left_ms() == 0 then
  row.driver, row.term_ms, row.until_ms = me, term_ms, row.elapsed_ms + term_ms
  if term_ms == 0 then row.driver = '' end
end
row.write()
return row.told('rollout')

-- rollout: reads the state of the rollout, or writes it if nobody has written since. While somebody drives, no other
-- driver's word is taken; a person's (driver '') is.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  version that the caller knows, '' only to read    ARGV[3] state (JSON), '' for none    ARGV[4] driver, ''
-- returns  {'rollout' | 'conflict', TIME (ms), version, state, driver, elapsed (ms), left of the driver's term (ms)}
local row = fleet.rollout()
if ARGV[2] == '' then return row.told('rollout') end
local driven_by_another = ARGV[4] ~= '' and ARGV[4] ~= row.driver
if driven_by_another or ARGV[2] ~= row.version then return row.told('conflict') end
row.version = text(row.version + 1)
row.state = ARGV[3]
row.write()
fleet.ring('rollout', row.version)
return row.told('rollout')

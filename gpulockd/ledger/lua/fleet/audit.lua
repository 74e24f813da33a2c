-- audit: a line about what changed no revision.
--
-- KEYS     the fleet's (gpulockd/ledger/keys.py)    ARGV[1] '' (no session)
-- ARGV[2]  line (a JSON object)    ARGV[3] number of the revision that it is about, ''
-- returns  {'audited', TIME (ms)}
fleet.note(ARGV[2], ARGV[3] ~= '' and ARGV[3] or nil)
return fleet.answer('audited')

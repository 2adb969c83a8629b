/*
 * The functions as SQL sees them.
 */
#include "pgh.h"

#include "access/xlog.h"
#include "catalog/pg_type.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(pgh_rewind);
PG_FUNCTION_INFO_V1(pgh_rewind_to);
PG_FUNCTION_INFO_V1(pgh_mark);

/* Of a list of OIDs, or of int4. */
static Datum
array_of(Oid type, const List *list)
{
	Datum	   *values = palloc(sizeof(Datum) * (list_length(list) + 1));
	ListCell   *cell;
	int			n = 0;

	foreach(cell, list)
		values[n++] = type == OIDOID ? ObjectIdGetDatum(lfirst_oid(cell)) : Int32GetDatum(lfirst_int(cell));
	return PointerGetDatum(construct_array(values, n, type, sizeof(int32), true, TYPALIGN_INT));
}

static int
argument(FunctionCallInfo fcinfo, int number, Oid type, Datum **values)
{
	return elements(PG_GETARG_ARRAYTYPE_P(number), type, values);
}

static Datum
as_row(FunctionCallInfo fcinfo, const Asked *asked, const Answer *answer, const Work *work)
{
	Datum		values[16];
	bool		nulls[16] = {0};
	TupleDesc	desc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE || desc->natts != lengthof(values))
		ereport(ERROR, errcode(ERRCODE_DATATYPE_MISMATCH), errmsg("declared with other columns"));
	memset(values, 0, sizeof values);
	values[0] = CStringGetTextDatum(answer->status);
	nulls[1] = answer->why == NULL;
	if (answer->why != NULL)
		values[1] = CStringGetTextDatum(answer->why);
	values[2] = LSNGetDatum(answer->upto);
	nulls[3] = !TransactionIdIsValid(answer->xid);
	values[3] = TransactionIdGetDatum(answer->xid);
	/* Who is in the way; and where nobody is, who idles in a transaction and may stay. */
	values[4] = array_of(INT4OID, answer->present.busy != NIL ? answer->present.busy : answer->present.idle);
	values[5] = BoolGetDatum(answer->present.prepared);
	values[6] = PointerGetDatum(advisory_locks(asked->lease, asked->ours, asked->nours));
	values[7] = array_of(OIDOID, list_concat_unique_oid(list_copy(answer->shared), answer->owners));
	values[8] = array_of(OIDOID, answer->present.temporary);
	values[9] = array_of(OIDOID, answer->touched);
	values[10] = Int64GetDatum(answer->upto > asked->since ? answer->upto - asked->since : 0);
	values[11] = Int64GetDatum(work->compared);
	values[12] = Int64GetDatum(work->written);
	values[13] = Int64GetDatum(work->truncated);
	values[14] = Int64GetDatum(work->made);
	values[15] = Int64GetDatum(work->dropped);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

/*
 * The arguments that the functions below begin with, and the marks of those that have more; declared with fewer, they would be read
 * from nowhere.
 */
static Asked
asked_by(FunctionCallInfo fcinfo, int arguments)
{
	Asked		asked = {0};

	if (PG_NARGS() != arguments)
		ereport(ERROR, errcode(ERRCODE_INVALID_FUNCTION_DEFINITION), errmsg("declared with other arguments"));
	asked.lease = PG_GETARG_OID(0);
	asked.baseline = PG_GETARG_OID(1);
	asked.since = PG_GETARG_LSN(2);
	asked.nown = argument(fcinfo, 3, OIDOID, &asked.own);
	asked.nours = argument(fcinfo, 4, INT4OID, &asked.ours);
	asked.nempty = argument(fcinfo, 5, OIDOID, &asked.empty);
	asked.most_bytes = PG_GETARG_INT64(6);
	asked.most_pages = PG_GETARG_INT64(7);
	asked.marks = arguments > 8 ? PG_GETARG_ARRAYTYPE_P(8) : construct_empty_array(TEXTOID);
	asked.above = arguments > 8 ? PG_GETARG_ARRAYTYPE_P(9) : asked.marks;
	if (!OidIsValid(asked.baseline) || asked.baseline != known_baseline)
		ereport(ERROR, errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				errmsg("this session does not know the files of baseline %u", asked.baseline));
	if (asked.lease == MyDatabaseId || asked.baseline == MyDatabaseId || asked.lease == asked.baseline)
		ereport(ERROR, errcode(ERRCODE_OBJECT_IN_USE),
				errmsg("a database cannot be rewound to itself, nor from inside"));
	if (asked.since % MAXIMUM_ALIGNOF != 0 || asked.since > GetXLogInsertRecPtr())
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				errmsg("%X/%X is no position of this server's log", LSN_FORMAT_ARGS(asked.since)));
	forget_provisional();
	return asked;
}

static Datum
rewind_as_asked(FunctionCallInfo fcinfo, const Asked *asked)
{
	Answer		answer = {0};
	Work		work = {0};

	work.lease = asked->lease;
	work.baseline = asked->baseline;
	answer.upto = asked->since;
	answer.status = asked->name == NULL ? rewind_lease(asked, &answer, &work) : mark_lease(asked, &answer, &work);
	return as_row(fcinfo, asked, &answer, &work);
}

/*
 * pgh_rewind(lease oid, baseline oid, since pg_lsn, own oid[], ours int[], empty oid[], most_bytes int8, most_pages int8,
 *     out status text, out why text, out upto pg_lsn, out xid oid, out busy int[], out prepared bool,
 *     out advisory text[], out shared oid[], out temporary oid[], out touched oid[],
 *     out read int8, out compared int8, out written int8, out truncated int8, out made int8, out dropped int8)
 */
Datum
pgh_rewind(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 8);

	return rewind_as_asked(fcinfo, &asked);
}

/*
 * pgh_rewind_to(.. as pgh_rewind .., marks text[], above text[], out .. as pgh_rewind ..)
 */
Datum
pgh_rewind_to(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 10);

	return rewind_as_asked(fcinfo, &asked);
}

/*
 * pgh_mark(.. as pgh_rewind_to .., name text, nodes oid[], oids oid[], tables oid[], kinds text, unlogged oid[],
 *     out .. as pgh_rewind ..)
 *
 * status: marked; relations (call again, with those of the lease); busy, locked, temporary, rows as for pgh_rewind.
 */
Datum
pgh_mark(PG_FUNCTION_ARGS)
{
	Asked		asked = asked_by(fcinfo, 16);

	asked.name = text_to_cstring(PG_GETARG_TEXT_PP(10));
	asked.nnodes = argument(fcinfo, 11, OIDOID, &asked.nodes);
	if (argument(fcinfo, 12, OIDOID, &asked.oids) != asked.nnodes ||
		argument(fcinfo, 13, OIDOID, &asked.tables) != asked.nnodes)
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));
	asked.kinds = text_to_cstring(PG_GETARG_TEXT_PP(14));
	if ((int) strlen(asked.kinds) != asked.nnodes)
		ereport(ERROR, errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("arrays of different lengths"));
	asked.nunlogged = argument(fcinfo, 15, OIDOID, &asked.unlogged);
	return rewind_as_asked(fcinfo, &asked);
}

/*
 * pgh: a leased database back to its baseline, page by page.
 *
 * known.c     which relations a baseline has: told once for each session
 * records.c   records of the write-ahead log, one after the other
 * log.c       which pages of the lease were written: one reading of the write-ahead log
 * present.c   who is in the way: transactions, statements, advisory locks, standbys
 * temporary.c .. and sessions whose temporary tables would lose their rows in the catalogs
 * owners.c    rows of the server's own catalogs that say who owns what in the lease
 * marks.c     states above the baseline: pages that differ from the state below
 * plan.c      which files are put back, and which of their pages
 * files.c     files cut and made again
 * fresh.c     files that the baseline has not: locked, dropped
 * pages.c     pages compared, copied, logged
 * counters.c  what the server has counted of relations
 * room.c      whether the disk has room for it
 * tell.c      what other sessions are told
 * rewind.c    one rewind: the order of it all
 * marking.c   one mark set
 * functions.c what SQL sees of it
 *
 * docs/rewind.md explains it.  PostgreSQL 15 to 18; what differs between them stands in this file.
 */
#ifndef PGH_H
#define PGH_H

#include "postgres.h"

#include "access/htup.h"
#include "access/xlogdefs.h"
#include "access/xlogrecord.h"
#include "common/relpath.h"
#include "nodes/bitmapset.h"
#include "nodes/pg_list.h"
#include "storage/block.h"
#include "storage/buf_internals.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/array.h"
#include "utils/backend_status.h"
#include "utils/hsearch.h"

/* --- what differs between versions -------------------------------------------------------------------------------- */

#if PG_VERSION_NUM < 150000 || PG_VERSION_NUM >= 190000
#error "tried with PostgreSQL 15 to 18 only"
#endif

#if PG_VERSION_NUM < 160000
typedef RelFileNode Locator;
typedef Oid RelNumber;
#define LOCATOR(spc, db, rel) ((RelFileNode) {(spc), (db), (rel)})
#define SPC(l) ((l).spcNode)
#define DB(l) ((l).dbNode)
#define REL(l) ((l).relNode)
#define RECORD_LOCATOR(rec) ((rec)->rnode)
#define PARSED_LOCATORS(parsed) ((parsed).xnodes)
#define BUFFER_DB(buffer) ((buffer)->tag.rnode.dbNode)
#define BUFFER_REL(buffer) ((buffer)->tag.rnode.relNode)
#define STATUS_OF(index) pgstat_fetch_stat_local_beentry(index)
#define NODE_OF_SHARED(oid) RelationMapOidToFilenode((oid), true)
#define PGIOAlignedBlock PGAlignedBlock
#define MAKE_TAG(tag, at, fork, block) INIT_BUFFERTAG((tag), (at), (fork), (block))
#define DROP_BUFFERS(relations, n) DropRelFileNodesAllBuffers((relations), (n))
#define MESSAGE_LOCATOR(message) ((message)->sm.rnode)
#define FIRST_LOCK(list) (PROCLOCK *) SHMQueueNext((list), (list), offsetof(PROCLOCK, procLink))
#define NEXT_LOCK(list, lock) (PROCLOCK *) SHMQueueNext((list), &(lock)->procLink, offsetof(PROCLOCK, procLink))
#else
typedef RelFileLocator Locator;
typedef RelFileNumber RelNumber;
#define LOCATOR(spc, db, rel) ((RelFileLocator) {(spc), (db), (rel)})
#define SPC(l) ((l).spcOid)
#define DB(l) ((l).dbOid)
#define REL(l) ((l).relNumber)
#define RECORD_LOCATOR(rec) ((rec)->rlocator)
#define PARSED_LOCATORS(parsed) ((parsed).xlocators)
#define BUFFER_DB(buffer) ((buffer)->tag.dbOid)
#define BUFFER_REL(buffer) BufTagGetRelNumber(&(buffer)->tag)
#define STATUS_OF(index) pgstat_get_local_beentry_by_index(index)
#define NODE_OF_SHARED(oid) RelationMapOidToFilenumber((oid), true)
#define MAKE_TAG(tag, at, fork, block) InitBufferTag(&(tag), &(at), (fork), (block))
#define DROP_BUFFERS(relations, n) DropRelationsAllBuffers((relations), (n))
#define MESSAGE_LOCATOR(message) ((message)->sm.rlocator)
#define LOCK_AT(list, node) \
	((node) == &(list)->head ? NULL : dlist_container(PROCLOCK, procLink, (node)))
#define FIRST_LOCK(list) (dlist_is_empty(list) ? NULL : dlist_head_element(PROCLOCK, procLink, (list)))
#define NEXT_LOCK(list, lock) LOCK_AT((list), (lock)->procLink.next)
#endif

#if PG_VERSION_NUM < 170000
#define NOBODY InvalidBackendId
#define NUMBER_OF(proc) ((proc)->backendId)
#define KEEP_OPEN(smgr) smgrsetowner(&(smgr), (smgr))
#define LET_CLOSE(smgr) smgrclose(smgr)
#define LOG_MESSAGE() LogLogicalMessage("pgh", "", 0, false)
#else
#define NOBODY INVALID_PROC_NUMBER
#define NUMBER_OF(proc) GetNumberFromPGProc(proc)
#define KEEP_OPEN(smgr) smgrpin(smgr)
#define LET_CLOSE(smgr) (smgrclose(smgr), smgrunpin(smgr))
#define LOG_MESSAGE() LogLogicalMessage("pgh", "", 0, false, false)
#endif

#if PG_VERSION_NUM < 180000
#define SMGRTRUNCATE(smgr, forks, n, old, want) ((void) (old), smgrtruncate((smgr), (forks), (n), (want)))
#define FILE_PATH(locator, fork) relpathperm((locator), (fork))
#else
#define SMGRTRUNCATE(smgr, forks, n, old, want) smgrtruncate((smgr), (forks), (n), (old), (want))
#define FILE_PATH(locator, fork) (relpathperm((locator), (fork)).str)
#endif

#define OPEN(locator) smgropen((locator), NOBODY)

/* The main fork, the free space map, the visibility map, the fork to which an unlogged relation is reset. */
#define FORKS (INIT_FORKNUM + 1)

/* A function of the same name in the server must not take the place of ours. */
#pragma GCC visibility push(hidden)

/* --- known.c ------------------------------------------------------------------------------------------------------ */

extern HTAB *make_table(const char *name, long size, Size key, Size entry, MemoryContext context);
extern int	elements(ArrayType *array, Oid type, Datum **values);

typedef struct Known
{
	RelNumber	node;			/* key: the number of its files, in the baseline and in the lease */
	Oid			oid;			/* for locks and messages */
	Oid			table;			/* the table whose heap, index, TOAST it is; its own OID else */
	char		kind;			/* pg_class.relkind; o: a table that is no heap */
	bool		btree;
	bool		unlogged;
	bool		gone;			/* a mark's state has it no more */
	bool		measured;
	BlockNumber want[FORKS];	/* blocks in the state to go back to; InvalidBlockNumber: no such fork */
	Oid			lease;			/* whose file is open here */
	SMgrRelation smgr;			/* its files, kept open from one rewind to the next */
	SMgrRelation source;		/* the baseline's, where pages are read beside the buffers */
} Known;

extern Oid	known_baseline;
extern List *known_unlogged;	/* of numbers of files */

extern Known *known_file(RelNumber node);
extern Known *known_below(RelNumber node);
extern List *known_family(Oid table);	/* numbers of the files of a table, of its indexes and its TOAST */
extern SMgrRelation known_lease(Known *known, Oid lease);
extern SMgrRelation known_source(Known *known, Oid baseline);
extern Known *know_file(RelNumber node, Oid oid, Oid table, char kind, bool unlogged);
extern void forget_file(RelNumber node);
extern char kind_of(const Known *known);

/* What this session remembers of a lease from one rewind to the next. */
typedef struct Memory
{
	Oid			lease;			/* key */
	XLogRecPtr	upto;			/* where the last window ended */
	uint32		passes,
				hand;			/* where buffers were replaced then */
	List	   *tombstones;		/* numbers of files that were dropped, and stay empty until the next checkpoint */
} Memory;

extern Memory *memory_of(Oid lease);

/* --- records.c ---------------------------------------------------------------------------------------------------- */

typedef struct LogBlock
{
	Locator		at;
	ForkNumber	fork;
	BlockNumber block;
} LogBlock;

typedef struct LogRecord
{
	const XLogRecord *header;
	char	   *data;			/* the main data of the kinds of records that are looked into, aligned; garbage for others */
	Size		room;
	int			nblocks;
	LogBlock	blocks[XLR_MAX_BLOCK_ID + 2];
} LogRecord;

extern XLogRecPtr first_record(XLogRecPtr position);
extern const char *each_record(XLogRecPtr from, XLogRecPtr until, void (*note) (const LogRecord *record, void *seen),
							   void *seen);

/* --- log.c -------------------------------------------------------------------------------------------------------- */

typedef struct Dirty
{
	RelNumber	node;			/* key */
	bool		all;			/* other things than pages: made, truncated, dropped */
	bool		dropped;
	bool		unlinked;		/* the log says so */
	bool		unlogged;		/* it has the fork to which an unlogged relation is reset */
	bool		btree;			/* a file that the baseline has not is one's */
	bool		freed;			/* a record of a B-tree did not leave all of its pages in use */
	bool		inserted;		/* all records of it put something into an index: no page became free */
	Bitmapset  *blocks[FORKS];
	BlockNumber newest[FORKS];	/* the one that was added last */
} Dirty;

typedef struct Seen
{
	HTAB	   *files;			/* of Dirty */
	Dirty	   *recent[16];		/* those that were written last, by their number */
	List	   *shared;			/* ids of transactions that wrote to the server's own catalogs .. */
	List	   *owners;			/* .. and to the one that says who owns what */
	const char *refused;		/* why pages are not enough */
} Seen;

extern void seen_begin(Seen *seen);
extern Dirty *seen_file(Seen *seen, RelNumber node);
extern void read_log(Seen *seen, XLogRecPtr from, XLogRecPtr until, Oid lease, const Datum *own, int nown);

/* --- present.c ---------------------------------------------------------------------------------------------------- */

typedef struct Present
{
	List	   *busy;			/* pids */
	List	   *idle;			/* pids of sessions that idle in a transaction */
	List	   *temporary;		/* OIDs of namespaces of sessions that have temporary tables, or had some */
	bool		prepared;
	bool		hidden;			/* a session does not say what it does */
	uint64		activity;		/* changes when any session begins or ends a statement, comes or goes */
} Present;

extern bool is_ours(int pid, const Datum *ours, int nours);
extern Present look_around(Oid lease, const Datum *ours, int nours);
extern bool anybody_reads(Oid lease);
extern ArrayType *advisory_locks(Oid lease, const Datum *ours, int nours);
extern const char *cannot_rewind(Oid lease);

/* --- marks.c ------------------------------------------------------------------------------------------------------ */

typedef struct MarkNode
{
	RelNumber	node;
	Oid			oid;
	Oid			table;
	char		kind;
	bool		unlogged;
	bool		gone;
	BlockNumber want[FORKS];
} MarkNode;

typedef struct MarkWriter MarkWriter;

extern void use_marks(ArrayType *names);
extern void forget_marks(void);
extern void note_marks(Seen *seen, ArrayType *names);
extern const char *marked_page(RelNumber node, ForkNumber fork, BlockNumber block);

extern MarkWriter *begin_mark(const char *name);
extern void mark_node(MarkWriter *writer, const MarkNode *node);
extern void mark_page(MarkWriter *writer, RelNumber node, ForkNumber fork, BlockNumber block, const char *page);
extern void end_mark(MarkWriter *writer);

/* --- one rewind, or one mark ------------------------------------------------------------------------------------------ */

#define FIRST_USER_OID 16384

/* What is asked for. */
typedef struct Asked
{
	Oid			lease,
				baseline;
	XLogRecPtr	since;
	Datum	   *own,
			   *ours,
			   *empty;
	int			nown,
				nours,
				nempty;
	int64		most_bytes,
				most_pages;
	ArrayType  *marks,			/* that are set, the lowest first */
			   *above;			/* whose states the lease may have pages of, though the log does not say it any more */
	const char *name;			/* of the mark to be set */
	Datum	   *nodes,			/* which relations the lease has now, as for pgh_know; none: not told */
			   *oids,
			   *tables,
			   *unlogged;
	char	   *kinds;
	int			nnodes,
				nunlogged;
} Asked;

typedef struct Answer
{
	const char *status,
			   *why;
	XLogRecPtr	upto;
	TransactionId xid;
	Present		present;
	List	   *shared,			/* as in Seen */
			   *owners,
			   *touched;
	XLogRecPtr	since;
} Answer;

typedef struct Target
{
	RelNumber	node;			/* key */
	Known	   *known;
	Dirty	   *dirty;			/* NULL: only what the log does not name can differ */
	BlockNumber have[FORKS];	/* blocks in the lease, once it is locked; InvalidBlockNumber: no such fork */
	Bitmapset  *buffered;		/* of an index: its pages in the buffers; NULL where all are compared */
	bool		remade;
} Target;

typedef struct RewindPlan
{
	HTAB	   *targets;		/* of Target */
	List	   *fresh;			/* of Dirty: files that the baseline has not .. */
	List	   *gone;			/* .. and that the test has dropped again */
	List	   *locks;			/* OIDs */
	List	   *touched;		/* OIDs of tables and sequences */
	bool		catalogs;
	bool		dropped;		/* files of the baseline were */
	bool		weak;			/* sessions in a transaction hold locks on what was put back */
	uint64		activity;		/* .. and what they did before */
	bool		by_buffers;		/* of indexes only the pages in the buffers are compared */
} RewindPlan;

typedef struct Work
{
	Oid			lease,
				baseline;
	XLogRecPtr	end;			/* of our last record; what lies between the locks and it is ours alone, if .. */
	bool		contiguous;		/* .. this holds */
	bool		weak;			/* readers are not locked out */
	int64		compared,
				written,
				truncated,
				made,
				dropped;
} Work;

/* --- temporary.c --------------------------------------------------------------------------------------------------- */

extern bool is_live(HeapTupleHeader row);
extern bool disturbs_temporary(const Asked *asked, const Present *present, HTAB *targets);

/* --- owners.c ---------------------------------------------------------------------------------------------------- */

extern bool is_of_owners(RelNumber node);
extern bool settle_owners(const Asked *asked, const List *written, bool put_back, Work *work);

/* --- plan.c -------------------------------------------------------------------------------------------------------- */

extern RewindPlan make_plan(Seen *seen);
extern bool compares_all(const Target *target, ForkNumber fork);
extern int64 weigh(RewindPlan *plan, Work *work, Memory *memory, const Asked *asked);
extern void find_buffered(RewindPlan *plan, Work *work, const Memory *memory);

/* --- files.c ------------------------------------------------------------------------------------------------------- */

extern void measure_baseline(Oid baseline, Known *known);
extern void measure_all(RewindPlan *plan, Oid lease);
extern void forget_unlinks(Memory *memory, Oid lease);
extern void close_unlinked(void);
extern void make_again(Work *work, Target *target);
extern void shorten_all(Work *work, RewindPlan *plan, Memory *memory);

/* --- fresh.c ----------------------------------------------------------------------------------------------------- */

extern void lock_fresh(RewindPlan *plan, Oid lease);
extern void drop_fresh(RewindPlan *plan, Memory *memory, Oid lease, Work *work);

/* --- pages.c ------------------------------------------------------------------------------------------------------- */

/* Behind the LSN and the checksum: they are the log's and the file's, not the content's. */
#define CONTENT offsetof(PageHeaderData, pd_flags)

extern void follow(Work *work);
extern bool is_logged(const Target *target, ForkNumber fork);
extern bool differ(const char *one, const char *other);
extern Buffer lease_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block);
extern Buffer baseline_page(Work *work, const Target *target, ForkNumber fork, BlockNumber block);
extern void restore(Work *work, Target *target);

/* --- tell.c -------------------------------------------------------------------------------------------------------- */

extern void tell(RewindPlan *plan, Oid lease);
extern void wake(Oid lease);

/* --- rewind.c ------------------------------------------------------------------------------------------------------ */

extern const char *approach(const Asked *asked, Answer *answer, RewindPlan *plan, Work *work);
extern void remember(const Asked *asked, Answer *answer, Work *work, uint32 passes, uint32 hand);
extern const char *rewind_lease(const Asked *asked, Answer *answer, Work *work);

/* --- marking.c ----------------------------------------------------------------------------------------------------- */

extern void forget_provisional(void);
extern const char *mark_lease(const Asked *asked, Answer *answer, Work *work);

/* --- counters.c --------------------------------------------------------------------------------------------------- */

extern void forget_counters(const RewindPlan *plan, Oid lease);

/* --- room.c ------------------------------------------------------------------------------------------------------- */

extern const char *no_room_for(HTAB *targets);

#pragma GCC visibility pop

#endif

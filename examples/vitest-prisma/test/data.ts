import { web } from '../src/clients';

/** What most tests begin with: the same slugs and addresses everywhere. */
export async function catalogue() {
  await web.package.create({
    data: {
      slug: 'elopement', title: 'Elopement', priceCents: 100_000,
      addOns: { create: [{ slug: 'flowers', priceCents: 5_000 }, { slug: 'photos', priceCents: 20_000 }] },
    },
  });
  await web.package.create({ data: { slug: 'weekend', title: 'Weekend', priceCents: 250_000 } });
}
